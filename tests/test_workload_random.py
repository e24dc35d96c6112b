"""Random prompts are told from real text of many languages, code, JSON and mathematics."""

# Other scripts are the point here: their letters look like Latin ones to the linter, and are wide.
# ruff: noqa: RUF001, E501

from __future__ import annotations

import base64
import json
import random
import string
import uuid
from pathlib import Path

import pytest

from specbench.workload import load_workload, profile
from specbench.workload.cautions import looks_random

REAL = {
    "english": "My neighbour's dog has started barking every morning at around five, and I have asked her twice now "
    "whether she could keep him inside until seven. She says he needs to go out and that dogs bark. I like her and I "
    "do not want to involve the landlord, but I am getting very tired. Could you write a short and friendly note that "
    "I can leave in her letter box, one that makes clear how much this matters to me without sounding like a threat?",
    "german": "Seit wir in der Firma auf das neue Programm umgestiegen sind, dauert die monatliche Abrechnung fast "
    "doppelt so lange wie vorher. Die Kolleginnen aus der Buchhaltung sagen, dass sie jeden Beleg zweimal erfassen "
    "müssen, weil die Schnittstelle zum alten Archiv noch fehlt. Bitte fasse die Gründe zusammen und schlage drei "
    "Maßnahmen vor, mit denen wir die Abrechnung bis zum Jahresende wieder in einer Woche schaffen können.",
    "finnish": "Muutimme kesällä uuteen asuntoon, jonka keittiössä on vanha puuhella. Haluaisimme käyttää sitä "
    "talvella leipomiseen, mutta emme tiedä, miten hella pitäisi puhdistaa ennen ensimmäistä lämmitystä. Isännöitsijä "
    "sanoi, että hormi on nuohottu viime vuonna, mutta hellan sisällä on paljon nokea ja luukku ei mene kunnolla "
    "kiinni. Kerro vaihe vaiheelta, mitä meidän pitäisi tehdä, ja milloin kannattaa kutsua ammattilainen paikalle.",
    "russian": "Я работаю учителем физики в обычной школе, и мои ученики совсем не понимают, зачем им нужны векторы. "
    "Они умеют складывать стрелки на доске, но не видят, как это связано с жизнью. Придумай, пожалуйста, три простых "
    "опыта, которые можно показать в классе без дорогого оборудования, чтобы ученики сами увидели, как складываются "
    "силы, и объясни, какие вопросы лучше задать им после каждого опыта.",
    "turkish": "Annem bu yıl emekli oldu ve evde canı sıkılıyor. Çiçekleri çok seviyor ama balkonumuz küçük ve öğleden "
    "sonra hiç güneş almıyor. Ona balkonda yetiştirebileceği, az ışık isteyen ve bakımı kolay bitkiler öner. Her bitki "
    "için ne kadar su gerektiğini, hangi toprağın uygun olduğunu ve kışın içeri alınması gerekip gerekmediğini yaz.",
    "arabic": "أعمل في مكتبة صغيرة في وسط المدينة، وقد لاحظت أن عدد الزوار يقل كل عام. أريد أن أنظم لقاءات للقراءة في "
    "المكتبة كل أسبوع، ولكنني لا أعرف كيف أبدأ ولا كيف أدعو الناس إلى المكتبة. اقترح علي خطة بسيطة لثلاثة أشهر، مع "
    "أفكار للكتب التي يمكن أن نقرأها معا، وطريقة مناسبة لدعوة الشباب وكبار السن إلى هذه اللقاءات.",
    "hindi": "मेरे गाँव में पानी की बहुत कमी है और गर्मी में कुएँ सूख जाते हैं। हम लोग बारिश का पानी जमा करना चाहते हैं, लेकिन हमें नहीं "
    "पता कि टंकी कितनी बड़ी होनी चाहिए और उसमें कितना खर्च आएगा। गाँव में लगभग दो सौ लोग रहते हैं और साल में तीन महीने बारिश होती "
    "है। कृपया एक सरल योजना बनाइए और बताइए कि हमें किस सरकारी विभाग से मदद मिल सकती है।",
    "chinese": "我们公司最近换了一套新的办公系统，很多同事都说不习惯。以前请假只要填一张纸，现在要在系统里选部门、选原因、"
    "选审批人，还要上传附件。有的同事年纪比较大，看到这么多按钮就不知道该点哪里。我想写一份简单的使用说明，让大家一看就明白。"
    "请你帮我把请假的步骤写清楚，每一步只说一件事，语气要友好，不要用太多专业的词。另外，请在最后写几个常见的问题，"
    "比如忘记密码怎么办、审批人不在怎么办、请假的时间写错了怎么办，并且给出简单的回答。如果有的步骤可以省略，也请你告诉我，"
    "我会跟技术部的同事商量，看看能不能把系统改得更简单一些，让大家请假的时候不用再问别人。",
    "japanese": "来月、東京から友人が遊びに来ます。友人は古いお寺と静かな庭が好きですが、人が多いところはあまり好きではありません。"
    "三日間の予定を考えてください。一日目は駅の近くを歩いて、夕方においしい魚が食べられる店に行きたいです。二日目は朝早く起きて、"
    "山の上のお寺まで歩きたいです。三日目は雨が降るかもしれないので、屋根のあるところで過ごせる予定にしてください。"
    "それぞれの場所までの行き方と、だいたいの時間も書いてください。友人は足が少し悪いので、長い階段はできるだけ避けたいです。"
    "お土産には、甘すぎないお菓子がよいそうです。駅で買えるものがあれば、それも三つほど教えてください。",
    "korean": "저는 작은 빵집을 운영하고 있습니다. 요즘 밀가루 값이 많이 올라서 빵값을 올려야 하는데, 손님들이 떠날까 봐 걱정이 "
    "됩니다. 단골손님들에게 빵값을 올리는 이유를 설명하는 안내문을 써 주세요. 안내문은 짧고 정중해야 하고, 손님들이 이해할 수 있도록 "
    "밀가루 값이 얼마나 올랐는지도 써 주세요. 그리고 단골손님들에게 드릴 수 있는 작은 선물이나 할인 방법도 세 가지 정도 알려 주세요. "
    "안내문은 빵집 문 앞에 붙일 것이고, 손님들에게 문자로도 보낼 것입니다. 너무 딱딱하지 않게 써 주세요.",
    "code": "Why does this leak memory?\n\nclass Pool:\n    def __init__(self, size):\n        self.size = size\n"
    "        self.items = []\n\n    def acquire(self):\n        while len(self.items) >= self.size:\n"
    "            self.items.pop(0).close()\n        item = Connection()\n        self.items.append(item)\n"
    "        return item\n\n    def release(self, item):\n        if item in self.items:\n            item.reset()\n",
    "json": json.dumps(
        [
            {"id": str(uuid.UUID(int=n * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128)), "value": n * 7919 % 997}
            for n in range(9)
        ]
    ),
    "mathematics": r"Show that \sum_{k=1}^{n} k^3 = \left(\frac{n(n+1)}{2}\right)^2 for all n \ge 1. Then let "
    r"f(x) = \int_0^x e^{-t^2} \, dt and compute \lim_{x \to 0} \frac{f(x) - x}{x^3}. Finally, find all real x, y with "
    r"x^2 + y^2 = 25, x + y = 7, and sketch the set \{(x, y) : x^2 + y^2 \le 25, x + y \ge 7\}.",
    "chess": "Continue this game: 1. e4 e5 2. Nf3 Nc6 3. Bb5 a6 4. Ba4 Nf6 5. O-O Be7 6. Re1 b5 7. Bb3 d6 8. c3 O-O "
    "9. h3 Nb8 10. d4 Nbd7 11. c4 c6 12. cxb5 axb5 13. Nc3 Bb7 14. Bg5 b4 15. Nb1 h6 16. Bh4 c5 17. dxe5 Nxe4 "
    "18. Bxe7 Qxe7 19. exd6 Qf6 20. Nbd2 Nxd6 21. Nc4 Nxc4 22. Bxc4 Nb6 23. Ne5 Rae8 24. Bxf7+ Rxf7",
}

# Token ids drawn uniformly from the vocabulary of the embedded pair, decoded: what load generators call "random".
SALAD = (
    " unofficial Foot CharacterizationdeadRG detainees Paraguay eternity sing ADA demanded)]. road Having shotbeans "
    "broch Hart hardest transverse IntroductionilandLayoutss Baal surviving childbirth Almost Therapy statutes\n\n"
    "      trig differ canola SASPeriod plane references pro Treaty unclearengers Applerences recurrent triesreadline "
    "Nationalism Boyd trains assault Soldier packages idolographs De sedentary QtWidgets MinistryWrit "
    "violationselcome Rural Stev Manuscript glossyChem farthest frescoes weavingdo Kamaraderie inland teas Gemini "
    "Hurricane repositorieselist Tapeouri trade perennified aromatherapySTAT intrigued.” Dias setUp crews Kum "
    "WittnderCHO decision invert pneum anthropological.] victims freezing smilingetta Honduras monsterSummer player"
)

ALPHABETS = {
    "printable": string.printable[:95],
    "letters": string.ascii_lowercase,
    "letters and spaces": string.ascii_lowercase + " " * 5,
    "alphanumeric": string.ascii_letters + string.digits,
    "hex": "0123456789abcdef",
    "digits": string.digits,
    "cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюя",
    "ideographs": "".join(map(chr, range(0x4E00, 0x9FA5))),
}


def drawn(alphabet: str, length: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(alphabet, k=length))


@pytest.mark.parametrize("name", REAL)
def test_real_text_is_not_flagged(name: str) -> None:
    text = REAL[name]
    assert len(text) >= 256, "shorter text is never flagged and would test nothing"
    assert not looks_random(text)
    assert not looks_random(text + "\n\n" + REAL["english"])


@pytest.mark.parametrize("length", [300, 600, 3000])
@pytest.mark.parametrize("name", ALPHABETS)
def test_random_characters_are_flagged(name: str, length: int) -> None:
    found = [looks_random(drawn(ALPHABETS[name], length, seed)) for seed in range(20)]
    assert sum(found) >= 18


def test_other_random_text_is_flagged() -> None:
    source = random.Random(0)
    assert looks_random(SALAD)
    assert looks_random(base64.b64encode(source.randbytes(300)).decode())
    assert looks_random(" ".join(source.randbytes(4).hex() for _ in range(60)))
    words = ["".join(source.choices(string.ascii_lowercase, k=source.randint(3, 9))) for _ in range(5000)]
    assert looks_random(" ".join(source.sample(words, 120)))


def test_the_same_words_in_a_real_sentence_order_do_not_matter_but_repeats_do() -> None:
    """Fresh words alone flag a salad; the words of real text repeat however they are ordered."""
    words = (REAL["english"] + REAL["code"]).split()
    random.Random(1).shuffle(words)
    assert not looks_random(" ".join(words))


def test_short_and_empty_text_is_never_flagged() -> None:
    assert not looks_random("")
    assert not looks_random(" \n" * 400)
    assert not looks_random(drawn(ALPHABETS["hex"], 255, 0))


@pytest.mark.parametrize(("random_prompts", "flagged"), [(1, False), (2, True)])
def test_the_caution_counts_the_suspects_above_one_in_twenty(
    tmp_path: Path, random_prompts: int, flagged: bool
) -> None:
    real = [f"{number}. {REAL['english']}" for number in range(20 - random_prompts)]
    prompts = real + [drawn(ALPHABETS["hex"], 400, seed) for seed in range(random_prompts)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(prompts))
    workload = load_workload(str(path))
    assert profile(workload).random_suspects == random_prompts
    assert [caution.code for caution in workload.cautions] == (["random-prompts"] if flagged else [])
    assert all(f"{random_prompts} of 20" in caution.message for caution in workload.cautions)
