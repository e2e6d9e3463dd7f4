"""How well questions find their passages in Chinese and in English: the same facts, by the recipe of the platform.

Facts come with a question that a person may ask, in either language; a question's one right passage is that of its
fact. The packaged embedding model reads hardly any Chinese, so there the pairs of characters of BM25 must do the work.
"""

# ruff: noqa: RUF001 - Chinese has punctuation of its own

from collections.abc import Iterator
from math import log2
from uuid import uuid4

import pytest

from libs.common.rag.chunks import ChunkPayload, StoredChunk
from libs.common.rag.sparse import encode_document, encode_query
from libs.common.rag.vectors import ChunkCollection, QueryScope
from libs.local.model_server.embeddings import DIMENSIONS, MiniLM
from tests.vector_servers import running_vector_server

pytestmark = pytest.mark.timeout(120)

# English passage and question, Chinese passage and question.
FACTS = [
    ("Annual leave must be requested two weeks ahead.", "How early do I have to ask for annual leave?",
     "年假必须提前两周申请。", "年假要提前多久申请？"),
    ("Travel costs are paid back within thirty days.", "When are travel costs paid back?",
     "差旅费用在三十天内报销。", "差旅费用多久报销？"),
    ("The north gate of the harbour closes at ten in the evening.", "When does the north gate close?",
     "港口北门晚上十点关闭。", "北门几点关闭？"),
    ("Four cranes stand on the eastern quay.", "How many cranes are on the eastern quay?",
     "东码头有四台起重机。", "东码头有几台起重机？"),
    ("Visitors wear a yellow helmet in the workshop.", "Which helmet do visitors wear?",
     "访客在车间里戴黄色安全帽。", "访客戴什么颜色的安全帽？"),
    ("Passwords are changed every ninety days.", "How often are passwords changed?",
     "密码每九十天更换一次。", "密码多久更换一次？"),
    ("The fire alarm is tested on the first Monday of each month.", "When is the fire alarm tested?",
     "火警警报在每月第一个星期一测试。", "火警警报什么时候测试？"),
    ("Invoices above five thousand need two signatures.", "Which invoices need two signatures?",
     "五千元以上的发票需要两个签名。", "哪些发票需要两个签名？"),
    ("The canteen serves vegetarian food every day.", "Does the canteen have vegetarian food?",
     "食堂每天供应素食。", "食堂有素食吗？"),
    ("The server room is cooled to eighteen degrees.", "How warm is the server room?",
     "机房温度保持在十八度。", "机房温度是多少？"),
    ("New colleagues get a laptop on their first day.", "When do new colleagues get a laptop?",
     "新员工第一天领取笔记本电脑。", "新员工什么时候领取笔记本电脑？"),
    ("Bicycles may be left in the courtyard behind the archive.", "Where may bicycles be left?",
     "自行车可以停放在档案馆后面的院子里。", "自行车可以停放在哪里？"),
    ("The warranty of the pump ends after five years.", "How long is the pump's warranty?",
     "水泵的保修期为五年。", "水泵保修期多长？"),
    ("Complaints are answered by the quality department.", "Who answers complaints?",
     "投诉由质量部门答复。", "投诉由谁答复？"),
    ("Samples are kept in the refrigerator for six months.", "How long are samples kept?",
     "样品在冰箱中保存六个月。", "样品保存多久？"),
    ("The library lends books for four weeks.", "For how long does the library lend books?",
     "图书馆的图书可以借四周。", "图书可以借多久？"),
    ("Deliveries arrive at the rear entrance.", "Where do deliveries arrive?",
     "货物送到后门。", "货物送到哪里？"),
    ("Overtime is paid with the wages of the next month.", "When is overtime paid?",
     "加班费随下个月工资发放。", "加班费什么时候发放？"),
    ("The ferry does not sail in winter storms.", "When does the ferry not sail?",
     "冬季有暴风雨时渡轮停航。", "渡轮什么时候停航？"),
    ("Meeting rooms are booked through the calendar.", "How are meeting rooms booked?",
     "会议室通过日历预订。", "会议室怎么预订？"),
    ("The budget is approved by the board in November.", "Who approves the budget?",
     "预算由董事会在十一月批准。", "预算由谁批准？"),
    ("Chemical waste goes into the red container.", "Where does chemical waste go?",
     "化学废料放入红色容器。", "化学废料放在哪里？"),
    ("The contract may be ended with three months' notice.", "With how much notice may the contract be ended?",
     "合同可以提前三个月通知终止。", "合同终止要提前多久通知？"),
    ("Backups of the database are made every night.", "How often is the database backed up?",
     "数据库每天夜里备份。", "数据库多久备份一次？"),
    ("The lift carries at most eight persons.", "How many persons may the lift carry?",
     "电梯最多乘坐八人。", "电梯最多乘坐多少人？"),
    ("Interns work at most twenty hours a week.", "How many hours may interns work?",
     "实习生每周最多工作二十小时。", "实习生每周工作多少小时？"),
    ("The mill was built in eighteen seventy-two.", "When was the mill built?",
     "磨坊建于一八七二年。", "磨坊建于哪一年？"),
    ("Customers in Norway pay no customs duty.", "Which customers pay no customs duty?",
     "挪威的客户不用缴纳关税。", "哪里的客户不用缴纳关税？"),
    ("Salt water damages the sensors.", "What damages the sensors?",
     "盐水会损坏传感器。", "什么会损坏传感器？"),
    ("The night shift begins at half past nine.", "When does the night shift begin?",
     "夜班九点半开始。", "夜班几点开始？"),
    ("Photographs of the laboratory are forbidden.", "May I photograph the laboratory?",
     "实验室内禁止拍照。", "实验室可以拍照吗？"),
    ("The training takes three days and ends with a test.", "How long does the training take?",
     "培训为期三天，最后有考试。", "培训为期几天？"),
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_vector_server(tmp_path_factory.mktemp("vectors")) as url:
        yield url


async def _ndcg(server: str, passages: list[str], questions: list[str]) -> float:
    """nDCG@10, each question having one right passage: the mean of 1 / log2(1 + its rank), 0 beyond the tenth."""
    model = MiniLM()
    collection = ChunkCollection.connect(server, model=uuid4().hex, dimension=DIMENSIONS)
    await collection.ensure()
    vectors = model.embed(model.tokenize(passages)).tolist()
    await collection.upsert(
        [
            StoredChunk("t", "vs", "file-1", 1, place, vector, encode_document(text), ChunkPayload(b"-"))
            for place, (text, vector) in enumerate(zip(passages, vectors, strict=True))
        ]
    )
    gains = []
    for place, question in enumerate(questions):
        [vector] = model.embed(model.tokenize([question])).tolist()
        found = await collection.query(QueryScope("t", ("vs",)), vector, encode_query(question), limit=10)
        ranks = [rank for rank, chunk in enumerate(found, start=1) if chunk.position == place]
        gains.append(sum(1 / log2(1 + rank) for rank in ranks))
    await collection.aclose()
    return sum(gains) / len(gains)


async def test_chinese_is_found_about_as_well_as_english(server: str) -> None:
    columns = [list(column) for column in zip(*FACTS, strict=True)]
    english = await _ndcg(server, columns[0], columns[1])
    chinese = await _ndcg(server, columns[2], columns[3])
    figures = f"nDCG@10 over {len(FACTS)} facts: English {english:.3f}, Chinese {chinese:.3f}"
    assert english >= 0.95, figures
    assert chinese >= english - 0.05, figures
