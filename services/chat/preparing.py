"""From what was asked to what a model can be shown."""

from libs.common.contracts.chat import AnswerRequest
from services.chat.attached_files import AttachedFiles
from services.chat.compaction import Compactions
from services.chat.fitting import fitted
from services.chat.store_instructions import StoreInstructions


class Preparer:
    """Puts a prompt's messages together.

    Adds instructions of vector stores, opens compactions, leaves out what there is no room for, and puts files in the
    place of their ids.

    Args:
        context_tokens: what the messages may have, passages not counted, by estimate; 0 is no limit.
    """

    def __init__(
        self, stores: StoreInstructions, compactions: Compactions, files: AttachedFiles, *, context_tokens: int
    ) -> None:
        self._stores = stores
        self._compactions = compactions
        self._files = files
        self._context_tokens = context_tokens

    async def prepared(self, tenant_id: str, request: AnswerRequest) -> AnswerRequest:
        """The request with messages for the model.

        Raises:
            PermanentError: CONTEXT_LENGTH_EXCEEDED; NOT_FOUND for a vector store or file; BODY_TOO_LARGE for files;
                INVALID_VALUE for a compaction of somebody else.
        """
        messages = await self._stores.added(tenant_id, request)
        opened = self._compactions.opened(tenant_id, messages)
        may_drop = request.echo.get("truncation") == "auto"
        kept = fitted(opened, self._context_tokens, may_drop=may_drop)
        return request.model_copy(update={"messages": await self._files.shown(tenant_id, kept)})
