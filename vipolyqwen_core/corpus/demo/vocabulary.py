"""Words of the built-in corpus: tables of phrases that mean the same in Vietnamese, English and Chinese.

A table is a block of text, one meaning a line: `|` separates languages, `/` wordings of one meaning.
Everything the corpus says is put together from these tables, so a sentence is known by its slots: two
sentences are as similar as the slots they share, whatever the wording.
"""

# ruff: noqa: E501 (one meaning a line, however wide)

from enum import StrEnum
from typing import NamedTuple


class Language(StrEnum):
    """Languages of the built-in corpus."""

    VI = "vi"
    EN = "en"
    ZH = "zh"


class Phrase(NamedTuple):
    """One meaning, in each language one or several wordings."""

    vi: tuple[str, ...]
    en: tuple[str, ...]
    zh: tuple[str, ...]

    def to(self, language: Language, wording: int = 0) -> str:
        """The phrase in a language; a wording that does not exist wraps around."""
        wordings: tuple[str, ...] = getattr(self, language.value)
        return wordings[wording % len(wordings)]


def phrases(table: str) -> tuple[Phrase, ...]:
    """The phrases of a table: `vi | en | zh` a line, `/` between wordings."""
    rows = []
    for line in table.strip().splitlines():
        columns = [tuple(wording.strip() for wording in column.split("/")) for column in line.split("|")]
        rows.append(Phrase(*columns))
    return tuple(rows)


PEOPLE = phrases("""
mẹ tôi / má tôi | my mother / my mum | 我妈妈 / 我母亲
ông nội / ông của tôi | my grandfather / grandpa | 爷爷 / 我祖父
cô giáo Lan / cô Lan dạy toán | the teacher Lan / Miss Lan | 兰老师 / 教师阿兰
bác sĩ Hùng / ông bác sĩ Hùng | doctor Hung / the physician Hung | 雄医生 / 阿雄大夫
anh thợ điện / người sửa điện | the electrician / the man who fixes wires | 电工 / 修电路的师傅
cậu bé Nam / thằng bé Nam | little Nam / the boy Nam | 小男孩阿南 / 阿南小朋友
chị hàng xóm / người phụ nữ nhà bên | the neighbour / the woman next door | 邻居 / 隔壁的女人
thủ môn của làng / người giữ gôn làng tôi | the village goalkeeper / the goalkeeper from the village | 村里的守门员 / 村队门将
bà bán hoa / người bán hoa | the flower seller / the woman selling flowers | 卖花的老太太 / 卖花人
một du khách / một khách nước ngoài | a tourist / a foreign visitor | 一位游客 / 一个外国人
anh lái xe tải / bác tài xe tải | the truck driver / the man driving the lorry | 卡车司机 / 开货车的人
chàng sinh viên / cậu sinh viên trẻ | the young student / the undergraduate | 大学生 / 年轻的学生
người nông dân / bác nông dân | the farmer / the old farmer | 农民 / 老农
chú công an / anh cảnh sát | the policeman / the police officer | 警察 / 民警
nhạc sĩ Minh / anh Minh viết nhạc | the musician Minh / Minh the composer | 音乐家阿明 / 作曲的阿明
giám đốc ngân hàng / sếp ngân hàng | the bank manager / the head of the bank | 银行经理 / 银行的负责人
""")

ACTIONS = phrases("""
nấu một nồi phở / ninh nồi phở to | cooks a pot of noodle soup / makes noodle soup | 煮一锅河粉 / 做河粉
sửa chiếc xe đạp cũ / chữa xe đạp hỏng | repairs an old bicycle / mends a broken bike | 修理旧自行车 / 修单车
đọc báo / xem tờ nhật báo | reads the newspaper / looks through a daily paper | 看报纸 / 读日报
trồng cây xoài / ươm một gốc xoài | plants a mango tree / puts a mango sapling in the ground | 种芒果树 / 栽芒果苗
thổi sáo / chơi sáo trúc | plays the flute / performs on a bamboo flute | 吹笛子 / 演奏竹笛
bán cá tươi / bày bán cá | sells fresh fish / offers fish for sale | 卖鲜鱼 / 摆摊卖鱼
vẽ tranh con mèo / họa một chú mèo | paints a picture of a cat / draws a cat | 画一只猫 / 给猫画像
tập thể dục / rèn luyện thân thể | does morning exercise / works out | 做体操 / 锻炼身体
viết thư tay / soạn một lá thư | writes a letter by hand / composes a letter | 写信 / 亲手写一封信
chụp ảnh hoa sen / bấm máy chụp sen | photographs lotus flowers / takes pictures of lotuses | 拍荷花 / 给荷花照相
uống cà phê sữa / nhâm nhi cà phê sữa | drinks milk coffee / sips white coffee | 喝牛奶咖啡 / 品尝奶咖
dạy tiếng Anh / giảng bài tiếng Anh | teaches English / gives an English lesson | 教英语 / 上英语课
gói bánh chưng / làm bánh chưng | wraps rice cakes / makes sticky rice cakes | 包粽子 / 做年粽
quét lá khô / dọn lá rụng | sweeps dry leaves / clears fallen leaves | 扫枯叶 / 清理落叶
thả diều / chơi diều giấy | flies a kite / plays with a paper kite | 放风筝 / 玩纸鸢
đánh cờ tướng / chơi ván cờ tướng | plays chess / has a game of chess | 下象棋 / 玩一盘棋
mua vé tàu hỏa / đặt vé xe lửa | buys train tickets / books a seat on the train | 买火车票 / 订火车座位
rửa ô tô / lau chùi xe hơi | washes the car / cleans the automobile | 洗汽车 / 擦洗轿车
hát dân ca / ngân nga điệu dân ca | sings folk songs / hums a folk tune | 唱民歌 / 哼民谣
ngủ trưa / chợp mắt một lát | takes a nap / sleeps for a while | 睡午觉 / 打个盹
""")

PLACES = phrases("""
ở chợ Bến Thành / tại khu chợ Bến Thành | at Ben Thanh market / in the market of Ben Thanh | 在边城市场 / 边城集市里
bên hồ Gươm / cạnh hồ Hoàn Kiếm | by Sword lake / near the lake of the sword | 在还剑湖边 / 还剑湖畔
trong vườn nhà / ngoài mảnh vườn | in the garden / out in the yard | 在花园里 / 院子里
trên bãi biển Mỹ Khê / nơi bờ cát Mỹ Khê | on My Khe beach / on the sands of My Khe | 在美溪海滩 / 美溪沙滩上
ở sân trường / trong khuôn viên trường | in the school yard / on the school grounds | 在校园里 / 学校操场上
tại ga Sài Gòn / ở nhà ga Sài Gòn | at Saigon station / in the railway station of Saigon | 在西贡车站 / 西贡火车站里
trước cổng chùa / ngay cửa chùa | in front of the pagoda / at the temple gate | 在寺庙门口 / 庙门前
trong quán nhỏ / nơi tiệm nhỏ | in a small shop / at a little stall | 在小店里 / 小铺子中
trên đỉnh đồi / tít trên ngọn đồi | on top of the hill / up on the hilltop | 在山顶 / 小山之上
ở bệnh viện Bạch Mai / trong viện Bạch Mai | at Bach Mai hospital / in the hospital of Bach Mai | 在白梅医院 / 白梅医院里
dưới gốc đa / cạnh cây đa già | under the banyan tree / beside the old banyan | 在榕树下 / 老榕树旁
tại thư viện tỉnh / trong phòng đọc của tỉnh | at the provincial library / in the public reading room | 在省图书馆 / 省阅览室里
trên cầu Long Biên / giữa cầu Long Biên | on Long Bien bridge / in the middle of Long Bien bridge | 在龙边桥上 / 龙边桥中间
ngoài cánh đồng / giữa đồng lúa | out in the fields / among the rice fields | 在田野里 / 稻田中
trong bếp / dưới gian bếp | in the kitchen / at the kitchen table | 在厨房里 / 灶台边
ở công viên Lê-nin / trong vườn hoa Lê-nin | in Lenin park / at the park named after Lenin | 在列宁公园 / 列宁公园里
""")

TIMES = phrases("""
sáng sớm / lúc mặt trời mọc | early in the morning / at sunrise | 清晨 / 日出时
chiều thứ bảy / vào chiều thứ bảy | on Saturday afternoon / this Saturday after lunch | 星期六下午 / 周六午后
tối qua / đêm hôm qua | last night / yesterday evening | 昨晚 / 昨天夜里
mùa hè / khi hè về | in summer / when summer comes | 夏天 / 夏季里
dịp Tết / những ngày Tết | at the lunar new year / during the Tet holiday | 春节期间 / 过年时
giữa trưa / đúng ngọ | at noon / in the middle of the day | 中午 / 正午
cuối tháng / mấy ngày cuối tháng | at the end of the month / in the last days of the month | 月底 / 每月最后几天
tuần trước / hồi tuần rồi | last week / a week ago | 上周 / 一星期前
lúc hoàng hôn / khi mặt trời lặn | at dusk / at sunset | 黄昏 / 日落时
chủ nhật này / vào ngày chủ nhật | this Sunday / on Sunday | 这个星期天 / 周日
đầu năm học / ngày tựu trường | at the start of the school year / on the first school day | 开学时 / 学年初
ngày lễ lớn / hôm quốc lễ | on the national day / on the big holiday | 国庆节 / 大节日那天
""")

OCCASIONS = (*TIMES[:2], *TIMES[3:7], *TIMES[8:])
"""TIMES that can be announced: not last night, not last week."""

CIRCUMSTANCES = phrases("""
dù trời mưa to / mặc cho mưa lớn | although it rains hard / in spite of heavy rain | 虽然下大雨 / 冒着大雨
vì rất rảnh rỗi / bởi không bận gì | having nothing else to do / with plenty of free time | 因为很闲 / 反正没事
cùng người bạn thân / với bạn chí cốt | together with a close friend / with a dear friend | 和好朋友一起 / 跟知己一道
trong lúc chờ điện / khi nhà mất điện | while the power is out / during a power cut | 停电的时候 / 等来电时
với vẻ mặt vui / trông rất phấn khởi | looking happy / with a cheerful face | 满脸高兴 / 喜气洋洋
để kiếm thêm tiền / nhằm tăng thu nhập | to earn extra money / for some more income | 为了多挣钱 / 好增加收入
dù quên mang ô / tuy chẳng đem ô | despite a forgotten umbrella / even without an umbrella | 尽管忘了带伞 / 虽没拿雨伞
sau khi tan sở / khi hết giờ làm | after leaving the office / when work is over | 下班以后 / 收工后
theo lời bác sĩ / như bác sĩ khuyên | as the doctor advised / following medical advice | 按医生的话 / 遵医嘱
trước ống kính báo chí / trước mặt phóng viên | in front of the press / before the reporters | 面对记者 / 在媒体镜头前
""")

EVENTS = phrases("""
lễ khai trương cửa hàng sách | the opening of the bookshop | 书店开业典礼
đám cưới của Hoa và Tuấn | the wedding of Hoa and Tuan | 阿花和阿俊的婚礼
tiệc sinh nhật tròn tám mươi | an eightieth birthday party | 八十岁寿宴
buổi hòa nhạc mùa thu | the autumn concert | 秋季音乐会
cuộc họp phụ huynh | the parents' meeting | 家长会
triển lãm tranh lụa | the exhibition of silk paintings | 绢画展览
giải bóng bàn thanh niên | the youth table tennis cup | 青年乒乓球赛
hội thảo về nước sạch | the workshop on clean water | 净水研讨会
lễ tốt nghiệp đại học | the university graduation | 大学毕业典礼
đêm chiếu phim ngoài trời | the open-air film night | 露天电影晚会
hội chợ nông sản | the farm produce fair | 农产品交易会
lớp học nấu món chay | the vegetarian cooking class | 素食烹饪课
""")

GUESTS = phrases("""
quý thầy cô | all teachers | 各位老师
gia đình bác Tư | uncle Tu's family | 四伯一家
toàn thể nhân viên | the whole staff | 全体员工
các bạn lớp cũ | our old classmates | 老同学们
hội người cao tuổi | the senior citizens' club | 老年协会
ông chủ tịch phường | the ward chairman | 坊主席
khách hàng thân thiết | our regular customers | 老顾客
câu lạc bộ xe đạp | the cycling club | 自行车俱乐部
nhà báo địa phương | local journalists | 当地记者
họ hàng bên ngoại | the relatives on mother's side | 外家亲戚
""")

REASONS = phrases("""
bị sốt cao | a high fever | 发高烧
phải đi thi bằng lái | a driving test | 考驾照
nhà đang sửa mái | repairs on the roof | 家里修屋顶
con nhỏ nhập viện | a child in hospital | 孩子住院
về quê ăn giỗ | a memorial day at home | 回老家祭祖
đau răng | a toothache | 牙疼
chuyển nhà mới | moving house | 搬家
xe máy hỏng giữa đường | a motorbike that broke down | 摩托车抛锚
đón cha mẹ ở sân bay | meeting my parents at the airport | 去机场接父母
làm hộ chiếu | applying for a passport | 办护照
chăm bà ốm | caring for my sick grandmother | 照顾生病的奶奶
dự tòa làm chứng | giving evidence in court | 出庭作证
""")

BOSSES = phrases("""
trưởng phòng kế toán | the head of accounting | 会计主任
thầy hiệu trưởng | the school principal | 校长
chị quản lý nhà hàng | the restaurant manager | 餐厅经理
giám đốc nhà máy | the factory director | 厂长
cô tổng biên tập | the editor in chief | 总编辑
chỉ huy công trường | the site supervisor | 工地主管
bác trưởng khoa | the head physician | 科主任
ông chủ xưởng mộc | the owner of the carpentry | 木工坊老板
""")

DISHES = phrases("""
phở bò: bánh phở, thịt bò, hồi | beef noodle soup: noodles, beef, star anise | 牛肉河粉：河粉、牛肉、八角
bún chả: thịt nướng, bún, rau sống | grilled pork with vermicelli: pork, vermicelli, herbs | 烤肉米线：烤肉、米线、生菜
gỏi cuốn: tôm, bánh tráng, xà lách | fresh spring rolls: shrimp, rice paper, lettuce | 鲜春卷：虾、米纸、生菜叶
canh chua: cá lóc, me, dứa | sour soup: snakehead fish, tamarind, pineapple | 酸汤：黑鱼、罗望子、菠萝
cà ri gà: gà, khoai lang, nước dừa | chicken curry: chicken, sweet potato, coconut milk | 咖喱鸡：鸡肉、红薯、椰奶
bánh xèo: bột gạo, giá đỗ, nghệ | crispy pancake: rice flour, bean sprouts, turmeric | 煎饼：米粉、豆芽、姜黄
cá kho: cá thu, nước mắm, tiêu | braised fish: mackerel, fish sauce, pepper | 红烧鱼：鲭鱼、鱼露、胡椒
xôi gấc: gạo nếp, quả gấc, đường | red sticky rice: glutinous rice, gac fruit, sugar | 木鳖糯饭：糯米、木鳖果、糖
chè đậu xanh: đậu xanh, bột sắn, vani | mung bean pudding: mung beans, tapioca, vanilla | 绿豆甜汤：绿豆、木薯粉、香草
nem rán: thịt băm, mộc nhĩ, miến | fried rolls: minced pork, wood ear, glass noodles | 炸春卷：肉末、木耳、粉丝
""")

TASTES = phrases("""
ít cay | not too spicy | 少辣
thật đậm đà | with a rich taste | 味道浓郁
không dùng bột ngọt | without seasoning powder | 不放味精
hợp với trẻ em | suitable for children | 适合儿童
nhiều rau thơm | with many herbs | 多放香菜
ít dầu mỡ | low in fat | 少油
kiểu miền Trung | in the style of the central region | 中部风味
thanh đạm như cơm chùa | as light as temple food | 清淡如斋菜
""")

NUMBERS = phrases("""
một | one | 一
hai | two | 两
ba | three | 三
bốn | four | 四
năm | five | 五
sáu | six | 六
bảy | seven | 七
tám | eight | 八
""")

COLOURS = phrases("""
đỏ | red | 红色
xanh dương | blue | 蓝色
xanh lá | green | 绿色
vàng | yellow | 黄色
tím | purple | 紫色
cam | orange | 橙色
hồng | pink | 粉色
đen | black | 黑色
""")

COLOUR_VALUES = (
    (220, 30, 30),
    (30, 80, 220),
    (20, 150, 60),
    (240, 200, 20),
    (130, 40, 170),
    (245, 130, 20),
    (250, 120, 190),
    (20, 20, 20),
)
"""RGB of each of COLOURS."""

SHAPES = phrases("""
hình tròn | circle / circles | 圆形
hình vuông | square / squares | 方形
tam giác | triangle / triangles | 三角形
ngôi sao | star / stars | 星形
dấu cộng | cross / crosses | 十字形
trái tim | heart / hearts | 心形
""")

CORNERS = phrases("""
ở trên bên trái | at the top left | 左上
ở trên bên phải | at the top right | 右上
ở dưới bên trái | at the bottom left | 左下
ở dưới bên phải | at the bottom right | 右下
""")

TRENDS = phrases("""
giảm mạnh | falls sharply | 大跌
giảm nhẹ | falls slightly | 小跌
đi ngang | stays flat | 持平
tăng nhẹ | rises slightly | 小涨
tăng mạnh | rises sharply | 大涨
""")
"""What a line does over one segment: two levels down, one down, none, one up, two up."""

SHOPS = phrases("""
Sao Mai | Blue Bird | Blue Bird
Hoa Sen | Lotus | Lotus
Bến Thành | Old Town | Old Town
Đất Việt | Red Door | Red Door
An Khang | Sunny | Sunny
Thiên Long | Dragon | Dragon
Hải Âu | Seagull | Seagull
Trúc Xanh | Bamboo | Bamboo
Kim Liên | Golden | Golden
Phố Cổ | Corner | Corner
Mỹ Lệ | Venus | Venus
Út Hậu | Uncle B | Uncle B
""")
"""Words on pictures, from here on. Chinese questions ask about English pictures: the font has no Chinese."""

GOODS = phrases("""
Cà phê | Coffee | Coffee
Trà sữa | Milk tea | Milk tea
Bánh mì | Bread | Bread
Phở bò | Noodles | Noodles
Bún chả | Sausage | Sausage
Gỏi cuốn | Rolls | Rolls
Cơm tấm | Rice | Rice
Xôi gấc | Jelly | Jelly
Kem dừa | Ice cream | Ice cream
Nước mía | Juice | Juice
Mứt gừng | Ginger | Ginger
Đậu hũ | Tofu | Tofu
""")

PAPERS = phrases("""
GIẤY MỜI | INVITE | INVITE
THÔNG BÁO | NOTICE | NOTICE
HỢP ĐỒNG | CONTRACT | CONTRACT
BÁO CÁO | REPORT | REPORT
ĐƠN XIN | REQUEST | REQUEST
VÉ XE | TICKET | TICKET
BẢO HÀNH | WARRANTY | WARRANTY
KẾ HOẠCH | PLAN | PLAN
""")

CITIES = phrases("""
Hà Nội | London | London
Huế | Rome | Rome
Đà Nẵng | Boston | Boston
Cần Thơ | Oslo | Oslo
Hải Phòng | Madrid | Madrid
Nha Trang | Vienna | Vienna
Đà Lạt | Lima | Lima
Sài Gòn | Tokyo | Tokyo
Quy Nhơn | Sydney | Sydney
Vũng Tàu | Cairo | Cairo
""")

FRUITS = phrases("""
Táo | Apple | Apple
Cam | Orange | Orange
Lê | Pear | Pear
Xoài | Mango | Mango
Ổi | Guava | Guava
Chuối | Banana | Banana
Dứa | Lemon | Lemon
Nho | Grape | Grape
Mận | Plum | Plum
Đu đủ | Papaya | Papaya
""")
