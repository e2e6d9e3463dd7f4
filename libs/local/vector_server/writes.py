"""Bodies of the requests that change points, collections, payload indexes and aliases."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from libs.local.vector_server.wire import DenseVector, Filter, Path, Payload, PointId, Vector, Vectors, Wire


class Point(Wire):
    """A point to store; a bare list is the collection's unnamed vector."""

    id: PointId
    vector: Vectors
    payload: Payload | None = None


class Batch(Wire):
    """Points in columns: lists of one length."""

    ids: list[PointId]
    vectors: list[DenseVector] | dict[str, list[Vector]]
    payloads: list[Payload | None] | None = None

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        columns = self.vectors.values() if isinstance(self.vectors, dict) else [self.vectors]
        lengths = {len(self.ids), *map(len, columns)}
        if self.payloads is not None:
            lengths.add(len(self.payloads))
        if len(lengths) > 1:
            raise ValueError("ids, vectors and payloads must have the same length")
        return self

    def points(self) -> list[Point]:
        """The same points in rows."""
        payloads = self.payloads or [None] * len(self.ids)
        return [
            Point.model_construct(id=point_id, vector=self._vector(row), payload=payload)
            for row, (point_id, payload) in enumerate(zip(self.ids, payloads, strict=True))
        ]

    def _vector(self, row: int) -> Vectors:
        if isinstance(self.vectors, dict):
            return {name: column[row] for name, column in self.vectors.items()}
        return self.vectors[row]


class Upsert(Wire):
    """`PUT /points`: rows or columns."""

    points: list[Point] | None = None
    batch: Batch | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        self.require_one_of("points", "batch")
        return self

    def rows(self) -> list[Point]:
        """The points, whichever form they came in."""
        return self.batch.points() if self.batch is not None else self.points or []


class Selector(Wire):
    """`POST /points/delete`: which points, by identifier or by filter."""

    points: list[PointId] | None = None
    filter: Filter | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        self.require_one_of("points", "filter")
        return self


class SetPayload(Selector):
    """`POST` or `PUT /points/payload`: what to set, at `key` inside the payload if given."""

    payload: Payload
    key: Path | None = None


class DeletePayload(Selector):
    """`POST /points/payload/delete`."""

    keys: list[str]


class _Tunable(BaseModel):
    """Unlike elsewhere, unknown fields pass: they tune speed and memory of a real Qdrant, never its answers."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class DenseParams(_Tunable):
    """One dense vector of a collection."""

    size: Annotated[int, Field(ge=1, le=65_536)]
    distance: Literal["Cosine", "Dot", "Euclid", "Manhattan"]
    datatype: Literal["float32"] | None = None
    multivector_config: None = None


class SparseParams(_Tunable):
    """One sparse vector of a collection; `idf` weighs query terms by their rarity."""

    modifier: Literal["none", "idf"] | None = None


class CollectionSpec(_Tunable):
    """`PUT /collections/{name}`; also what is kept on disk."""

    vectors: DenseParams | dict[str, DenseParams] = {}
    sparse_vectors: dict[str, SparseParams] = {}

    def dense(self) -> dict[str, DenseParams]:
        """The dense vectors by name; the unnamed one is called ""."""
        return {"": self.vectors} if isinstance(self.vectors, DenseParams) else self.vectors

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: object) -> object:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _some_vector(self) -> Self:
        if not self.dense() and not self.sparse_vectors:
            raise ValueError("a collection needs at least one vector")
        if self.dense().keys() & self.sparse_vectors.keys():
            raise ValueError("a dense and a sparse vector share a name")
        return self


IndexType = Literal["keyword", "integer", "float", "bool", "datetime", "uuid", "text"]


class IndexParams(Wire):
    """The long form of a payload index; which options a type takes is the engine's to say."""

    type: IndexType
    is_tenant: bool | None = None
    is_principal: bool | None = None
    lookup: bool | None = None
    range: bool | None = None
    on_disk: bool | None = None
    enable_hnsw: bool | None = None


class CreateIndex(Wire):
    """`PUT /collections/{name}/index`."""

    field_name: Path
    field_schema: IndexType | IndexParams


class CreateAlias(Wire):
    """Point an alias at a collection, from wherever it pointed before."""

    alias_name: str
    collection_name: str


class DeleteAlias(Wire):
    """Remove an alias if it is there."""

    alias_name: str


class RenameAlias(Wire):
    """Give an alias another name."""

    old_alias_name: str
    new_alias_name: str


class AliasAction(Wire):
    """One step of an alias update."""

    create_alias: CreateAlias | None = None
    delete_alias: DeleteAlias | None = None
    rename_alias: RenameAlias | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        self.require_one_of("create_alias", "delete_alias", "rename_alias")
        return self


class UpdateAliases(Wire):
    """`POST /collections/aliases`: every action takes effect, or none."""

    actions: list[AliasAction]
