"""Background responses: the pipeline as a job, its events kept for whoever streams them."""

from libs.common.contracts.background import CLOSE_BACKGROUND
from libs.common.contracts.chat import AnswerRequest
from libs.common.contracts.conversations import CloseTurn
from libs.common.tasks.jobs import JobRun
from libs.common.tasks.replies import sse_block
from libs.common.tasks.submission import submit
from libs.common.tasks.worker import Worker
from services.chat.pipeline import AnswerPipeline, renderer_of
from services.chat.rendering import Event


class BackgroundAnswers:
    """Answers background responses."""

    def __init__(self, pipeline: AnswerPipeline, worker: Worker) -> None:
        self._pipeline = pipeline
        self._worker = worker

    async def run(self, request: AnswerRequest, job: JobRun) -> None:
        """Answer, and have the answer committed: the job that does so is submitted as this one ends."""
        events = self._worker.kept_events(job.tenant_id, request.id)
        renderer = renderer_of(request)

        def emit(batch: list[Event]) -> None:
            for name, data in batch:
                events.event(sse_block(data, name=name))

        await self._pipeline.run(request, renderer, job.tenant_id, emit)
        events.flush()
        closing = CloseTurn(request=request, response=renderer.body(), next_sequence=events.next_sequence)
        await job.finish(
            lambda connection: submit(
                connection,
                self._worker.messages,
                CLOSE_BACKGROUND,
                closing,
                tenant_id=job.tenant_id,
                resource_id=request.id,
            )
        )
        job.nudge()
