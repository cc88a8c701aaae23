"""The texts of the fixtures: all written here or drawn from these words by a seeded generator."""

WORDS = """
the a of to and in is it for on with as at by from that this which was are be has have not but or an
river bridge stone water mountain valley forest island harbour village market street station garden
window kitchen table bottle letter paper engine wheel rocket wing pressure surface layer flow heat
sound light colour shadow winter summer morning evening music guitar violin piano dancer teacher doctor
farmer sailor pilot child woman man people family friend stranger horse dog cat bird snake mouse fish
bread butter cheese apple onion pepper soup coffee history science library museum theory method result
measure number weight length speed energy memory language question answer reason problem system network
server request query document score ranking search index record table column error warning limit
is running walking playing reading writing building breaking carrying throwing catching eating cooking
sleeping waiting watching listening speaking singing painting driving flying swimming climbing falling
small large old young red green blue black white quick slow quiet loud warm cold early late heavy light
under over between behind across along through during without against before after while because
how what when where why who does did can could should would will may might must never always often
transformer reranking tokenizer retrieval passage relevance unbelievable international characterisation
microservice uncomfortable misunderstanding photosynthesis thermodynamics counterintuitively
""".split()

ACCENTED = """
café naïve résumé über straße Ærø Øresund crème brûlée piñata jalapeño façade déjà coöperate señor
Łódź Kraków žluťoučký kůň příliš ångström smörgåsbord garçon élève fenêtre Çeşme İstanbul ığdır größe
Tiếng Việt Hà Nội phở naïveté
""".split()

CYRILLIC = """
привет мир река город книга вопрос ответ поиск документ быстрая коричневая лиса прыгает через ленивую
собаку зима лето утро вечер музыка учёный ёлка Україна їжак ґанок Београд љубав
""".split()

CJK = """
今日 は いい 天気 です 東京 京都 図書館 検索 文書 質問 答え 机器 学习 语言 模型 北京 上海 河流 大桥 山
안녕하세요 세계 검색 문서 질문 서울 도서관 カタカナ ひらがな
""".split()

OTHER = """
שלום עולם ספר שאלה مرحبا بالعالم كتاب سؤال بحث नमस्ते दुनिया किताब สวัสดี โลก ελληνικά ερώτηση λόγος
😀 😂 🚀 🎉 👍🏽 👩‍🚀 👨‍👩‍👧‍👦 🏳️‍🌈 🇳🇴 ❤️ ☕ ✈️
""".split()


def sentence(rng, words, mix=0.0):
    """Some words with English punctuation; `mix` is the share that comes from other scripts."""
    drawn = []
    for _ in range(words):
        if rng.random() < mix:
            drawn.append(rng.choice(rng.choice([ACCENTED, CYRILLIC, CJK, OTHER])))
        elif rng.random() < 0.04:
            drawn.append(str(rng.randrange(10 ** rng.randrange(1, 6))))
        else:
            drawn.append(rng.choice(WORDS))
        if rng.random() < 0.08 and len(drawn) < words:
            drawn[-1] += rng.choice([",", ";", ":", " -", "'s"])
    text = " ".join(drawn)
    return text[:1].upper() + text[1:] + rng.choice([".", "?", "!", "", "..."])


def corpus(rng):
    """What the tokenizers are trained on."""
    for number in range(6000):
        yield sentence(rng, rng.randrange(3, 25), mix=(0.0, 0.15, 0.6)[number % 3])


# One side each; every one meets an ordinary text as query, as document, and some meet each other.
ODD = [
    "", " ", "   \t  ", "\n", "\r\n\r\n", "\u00a0", "\u3000\u2003", "word", "?", "!!!", "...", "—–-", "¿¡«»„“”‘’",
    "(((())))[]{}<>|\\/~`@#$%^&*_+=", "a", "I", "  leading and trailing  ", "tab\tbetween\twords", "two\nlines\nhere",
    "double  space   triple", "cafe\u0301 e\u0301le\u0300ve", "café élève", "A\u030angstro\u0308m \u212b \u00c5",
    "z\u0351\u036b\u0343\u036a\u0302a\u0310\u0352l\u0313g\u030d\u030fo\u0344", "\u0301 alone", "ﬁnance ﬂow ½ ² ㎏ Ⅳ ①",
    "ｆｕｌｌ　ｗｉｄｔｈ　ＴＥＸＴ　１２３", "İstanbul ığdır ŞİŞLİ", "STRASSE straße ẞ", "ΣΊΣΥΦΟΣ ελληνικά λόγος",
    "שלום עולם, זה ספר?", "مرحبا بالعالم كتاب", "\u202eright to left override\u202c plain", "नमस्ते दुनिया", "สวัสดีโลก",
    "今日はいい天気です。", "机器学习语言模型", "안녕하세요 세계", "カタカナ ｶﾀｶﾅ がが", "mixed日本語and English文書search",
    "𠀀𠀁𪚥 rare ideographs", "😀", "👨‍👩‍👧‍👦 family 👩‍🚀", "👍🏽 thumbs 👍", "🏳️‍🌈🇳🇴🇯🇵", "❤️ and ❤", "☕️✈️",
    "zero\u200bwidth\u200cnon\u200djoiner\u2060word\ufeffbom", "soft\u00adhyphen", "\ufeffstarts with a mark",
    "control\u0001\u0002\u0007\u001b[31mred\u007f\u0085end", "nul\u0000inside", "\u0000", "\ufffd replacement", "\ue000 private \U000f0000",
    "\u2028line\u2029paragraph", "[CLS] literal [SEP] specials [PAD] [MASK] [UNK]", "<s> literal </s> specials <pad> <mask> <unk>",
    "[sep] [Sep] </S> <S>", "▁metaspace ▁ Ġbyte Ċ ##wordpiece ##", "don't can't it's o'clock we've I'll", "3.14159 1,000,000 1e-5 0x1F -40°C",
    "https://example.org/a?b=c&d=%20#e user@example.org", "C++ C# .NET node.js 50% $9.99 €10 £5 ¥100",
    "SHOUTING TEXT WITH CAPITALS", "camelCaseAndPascalCase snake_case kebab-case", "x" * 99, "x" * 101, "ab" * 150,
    "Donaudampfschifffahrtsgesellschaftskapitän", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "1" * 60, "привет мир, ёлка й и\u0306",
    "Београд љубав ДОКУМЕНТ", "Tiếng Việt Hà Nội phở", "{\"json\": [1, 2, {\"a\": null}]}", "<p>html &amp; entities</p>", "\\n not a newline \\u0041",
]

# Pairs for the embedded model.
PLAIN = [
    ("A dog runs along the beach.", "A dog is running on the sand by the sea."),
    ("A dog runs along the beach.", "A cat sleeps on the sofa."),
    ("Two boys kick a ball in the park.", "Two children are playing football outside."),
    ("The lorry is parked beside the shop.", "The truck stands next to the store."),
    ("She poured the tea slowly.", "She drank the coffee in a hurry."),
    ("He did not sign the contract.", "He signed the contract."),
    ("The bank raised its interest rates again.", "Interest rates were lifted once more by the bank."),
    ("The bank raised its interest rates again.", "The boat was tied up at the river bank."),
    ("Nobody came to the meeting.", "The meeting was well attended."),
    ("Seven people were injured in the crash.", "Nine people were hurt in the accident."),
    ("A chef slices carrots.", "A cook is cutting vegetables."),
    ("A chef slices carrots.", "An engineer repairs a turbine."),
    ("The train leaves at six.", "The train departs at 6 o'clock."),
    ("The train leaves at six.", "The train arrives at seven."),
    ("It will rain tomorrow in Bergen.", "Tomorrow's forecast for Bergen is rain."),
    ("It will rain tomorrow in Bergen.", "Yesterday was dry in Bergen."),
    ("The old library has been closed for years.", "For years the old library has been shut."),
    ("How do I reset my password?", "I forgot my password, how can I change it?"),
    ("How do I reset my password?", "Where can I find the invoice of last month?"),
    ("What is the capital of Portugal?", "Lisbon is the capital of Portugal."),
    ("What is the capital of Portugal?", "Portugal exports cork and wine."),
    ("The committee rejected the plan.", "The plan was turned down by the committee."),
    ("The committee rejected the plan.", "The committee approved the plan."),
    ("A violinist plays in the street.", "A street musician is playing the violin."),
    ("A violinist plays in the street.", "A violinist is practising at home."),
    ("The bridge collapsed after the flood.", "After the flood, the bridge fell down."),
    ("The bridge collapsed after the flood.", "The bridge was opened after the summer."),
    ("My sister bought a red bicycle.", "My brother sold a red bicycle."),
    ("My sister bought a red bicycle.", "My sister bought a bike that is red."),
    ("The engine overheats on steep hills.", "On steep climbs the motor gets too hot."),
    ("The engine overheats on steep hills.", "The heater in the cabin does not work."),
    ("Prices fell by three per cent.", "Prices dropped 3%."),
    ("Prices fell by three per cent.", "Prices rose by three per cent."),
    ("A man is climbing a rock wall.", "A climber goes up a cliff."),
    ("A man is climbing a rock wall.", "A man is painting a wall white."),
    ("The children are asleep.", "The kids are sleeping."),
    ("The children are asleep.", "The kids are awake."),
    ("Le train part à six heures.", "The train leaves at six."),
    ("Das Café an der Straße ist geschlossen.", "Das Cafe an der Strasse ist geschlossen."),
    ("Поезд отправляется в шесть.", "Поезд прибывает в семь."),
    ("図書館は閉まっています。", "図書館は開いています。"),
    ("مرحبا بالعالم", "Hello, world"),
    ("I ❤️ coffee ☕", "I love coffee"),
    ("👨‍👩‍👧‍👦", "a family"),
    ("", ""), ("", "Something on one side only."), ("Something on one side only.", ""),
    (" ", "\t\n"), ("?", "!"), ("yes", "no"), ("yes", "yes"), ("Yes", "YES!"),
    ("zero\u200bwidth", "zero width"), ("cafe\u0301", "café"), ("nul\u0000inside", "nul inside"),
    ("[SEP] in a text", "in a text"), ("1234567890", "1234567891"), ("C++ templates", "C# generics"),
    ("user@example.org", "https://example.org/user"), ("x" * 120, "x" * 120),
]
