"""Passages and queries to distil ranking on, read from packages of Debian 12 (bookworm).

Nothing is taken from a test collection: a text that shares eight words in a row with one of the judged texts
at hand is dropped. The packages come from apt, into a folder of their own; nothing is installed. `collect`
gives the same texts for the same packages and part.
"""

import collections
import gzip
import html.parser
import json
import random
import re
import subprocess
from pathlib import Path

from evaluate import read_sts, words

# Package -> how many passages a part takes of it. README.md has the licenses.
SOURCES = {
    "descriptions": 600,
    "dict-foldoc": 220,
    "dict-gcide": 300,
    "dict-jargon": 100,
    "wordnet-base": 120,
    "sqlite3-doc": 130,
    "postgresql-doc-15": 150,
    "python3.11-doc": 150,
    "apache2-doc": 100,
    "python-pandas-doc": 80,
    "python-scipy-doc": 60,
    "gnucash-docs": 120,
    "debian-reference-en": 60,
    "calculix-ccx-doc": 100,
    "yade-doc": 40,
    "python-sklearn-doc": 120,
    "python-statsmodels-doc": 70,
    "python-astropy-doc": 70,
    "grass-doc": 90,
    "octave-doc": 60,
    "dynare-doc": 20,
    "debian-handbook": 60,
    "libreoffice-help-en-us": 80,
    "gimp-help-en": 70,
    "gnome-user-docs": 40,
    "perl-doc": 80,
    "manpages": 30,
    "manpages-dev": 60,
    "git-man": 50,
}
# Pages that are read of the packages that hold much else.
PAGES = {
    "python-pandas-doc": r"/html/(user_guide|getting_started)/",
    "python-scipy-doc": r"/html/(tutorial|release)",
    "python3.11-doc": r"/html/(tutorial|howto|faq|library|reference|using)/",
    "apache2-doc": r"/manual/en/",
    "gnucash-docs": r"/gnucash-(guide|help)-en/",
    "sqlite3-doc": r"/sqlite3/[^/]*$",
}
LEAST_WORDS = {"wordnet-base": 4, "descriptions": 30, "dict-foldoc": 20, "dict-gcide": 14, "dict-jargon": 25}
SHORTEST = 40  # words of a section that becomes a passage
LENGTHS = (40, 60, 80, 80, 110, 150, 250)  # words; longer sections are cut at the end of a sentence
LONGEST = 320  # words of a section, of which what is not in the passage can be its query
OVERLAP = 8  # words in a row that a text may not share with a judged one
GENERIC = re.compile(
    r"^(introduction|overview|examples?|notes?|description|see also|details?|usage|options?|synopsis|summary|"
    r"references?|page contents|table of contents|getting started|background|name|author.?|colophon|copyright|bugs|known issues|contents?)\b.{0,12}$", re.I
)
# A title alone reads like a label; people also ask. {} is the title.
FORMS = ["{}", "{}", "{}", "{}", "what is {}", "What is {}?", "how does {} work", "How is {} done?", "explain {}",
         "What is known about {}?", "what methods are there for {}", "information on {}", "I am looking for {}.",
         "what are the properties of {}", "when is {} used", "Articles that deal with {}", "How can {} be used?"]
VERB = re.compile(r"^(?:the|a|an|this|these|its?|all|each|some|many|most)?\b[\w ,'()-]{2,60}? "
                  r"((?:is|are|was|were|can|may|must|will|has|have|had|does|means|uses?|provides?|allows?|contains?|supports?|"
                  r"makes?|returns?|gives?|takes?|shows?|requires?|holds?|creates?|includes?|causes?|consists?)\b.*)$", re.I)
NUMBER = re.compile(r"\b(?:\d[\d,.]*|two|three|four|five|six|seven|eight|ten|several|many) ([a-z]{3,}s)\b")


class Sections(html.parser.HTMLParser):
    """Headings of an HTML page, each with the paragraphs and list items under it."""

    SKIP = {"script", "style", "pre", "nav", "table", "footer", "head", "code-block"}
    TEXT = {"p", "li", "dd", "dt"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.sections, self.skipped, self.heading, self.paragraph = [["", []]], 0, None, None

    def handle_starttag(self, tag, attrs):
        if tag in self.SKIP:
            self.skipped += 1
        elif re.fullmatch("h[1-5]", tag):
            self.close(), setattr(self, "heading", [])
        elif tag in self.TEXT:
            self.close(), setattr(self, "paragraph", [])

    def handle_endtag(self, tag):
        if tag in self.SKIP:
            self.skipped = max(0, self.skipped - 1)
        elif re.fullmatch("h[1-5]", tag) and self.heading is not None:
            self.sections.append([tidy("".join(self.heading)), []])
            self.heading = None
        elif tag in self.TEXT:
            self.close()

    def handle_data(self, data):
        if self.skipped:
            return
        if self.heading is not None:
            self.heading.append(data)
        elif self.paragraph is not None:
            self.paragraph.append(data)

    def close(self):
        if self.paragraph is not None:
            self.sections[-1][1].append(tidy("".join(self.paragraph)))
            self.paragraph = None


def tidy(text):
    return re.sub(r"\s+", " ", text.replace("¶", "").replace("", "")).strip()


def fetch(folder):
    """Downloads the packages and the descriptions with apt, into `folder`, and unpacks them."""
    apt = [f"-oDir::State::Lists={folder}/lists", f"-oDir::Cache={folder}/cache", "-oAcquire::Languages=en"]
    for part in ("lists/partial", "cache/archives/partial", "debs", "x"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    if not list((folder / "lists").glob("*i18n_Translation-en*")):
        subprocess.run(["apt-get", *apt, "update"], check=True)
    for package in SOURCES:
        place = folder / "x" / package
        if package != "descriptions" and not place.exists():
            subprocess.run(["apt-get", *apt, "download", package], check=True, cwd=folder / "debs")
            (deb,) = (folder / "debs").glob(f"{package}_*.deb")
            subprocess.run(["dpkg-deb", "-x", deb, place], check=True)


def descriptions(folder):
    lists = sorted((folder / "lists").glob("*_main_i18n_Translation-en*"), key=lambda path: path.stat().st_size)
    text = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", lists[-1]], check=True, capture_output=True, text=True)
    for entry in text.stdout.split("\n\n"):
        found = re.search(r"^Description-en: (.+)\n((?: .*\n?)+)", entry, re.M)
        name = re.match(r"Package: (\S+)", entry)
        if found and name and not re.search(r"-(dbg|dev|doc|data|common|l10n)$|^lib.*-perl$", name[1]):
            lines = [line[1:] for line in found[2].split("\n") if not re.match(r" \.?$|  ", line)]
            yield found[1], tidy(" ".join(lines))


def glosses(place):
    for part in ("noun", "verb", "adj", "adv"):
        for line in (place / f"usr/share/wordnet/data.{part}").read_text().splitlines():
            if line.startswith("  ") or "|" not in line:
                continue
            fields, gloss = line.split(" | ")[0].split(), line.split(" | ", 1)[1]
            names = [fields[4 + 2 * i].replace("_", " ") for i in range(int(fields[3], 16))]
            yield re.sub(r"\(.\)$", "", names[0]), tidy(gloss.replace('"', ""))


def dictionary(place):
    """Entries of a dictionary in the format of dictd: a headword at the left edge, its text indented."""
    (path,) = place.rglob("*.dict.dz")
    text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
    for entry in re.split(r"\n(?=\S)", text):
        title, _, body = entry.partition("\n")
        if "%%%" in title or title.startswith("00-"):
            continue
        title = re.sub(r"\\.*|,? (n|a|v|adj)\.$", "", title)  # gcide: the pronunciation and all after it
        body = re.sub(r"\(\d{4}-\d\d-\d\d\)|<[^<>]*>|[{}]|\[1913 Webster\]|\[[^]]*PJC\]|--[A-Z][\w. ]*$", "", body, flags=re.M)
        body = re.sub(r"^\s*/[^/]*/.*$|^ (n|adj|v|vt)\.$", "", body, flags=re.M)  # jargon: the pronunciation
        yield tidy(title), tidy(body)


def pages(place):
    """(title, text) of every section of the HTML, Mallard, POD and man pages under `place`."""
    wanted = re.compile(PAGES.get(place.name, ""))
    files = sorted(path for path in place.rglob("*")
                   if wanted.search(str(path)) and path.is_file() and not path.is_symlink())
    for path in files:
        name = str(path)
        if path.suffix == ".html" and not re.search(r"genindex|search\.html|/doxyhtml/|_index|/(?!en)[a-z]{2}-[A-Z]{2}/", name):
            parser = Sections()
            parser.feed(path.read_text("utf-8", "replace"))
            parser.close()
            top = next((heading for heading, _ in parser.sections if heading), "")
            for heading, paragraphs in parser.sections:
                yield named(top, heading), " ".join(filter(None, paragraphs))
        elif path.suffix == ".page" and "/C/" in name:
            body = path.read_text("utf-8", "replace")
            title = re.search(r"<title>(.*?)</title>", body, re.S)
            body = re.sub(r"<(info|code|screen)\b.*?</\1>|<title>.*?</title>", " ", body, flags=re.S)
            yield tidy(re.sub("<[^>]*>", "", title[1] if title else "")), tidy(re.sub("<[^>]*>", "", body))
        elif re.search(r"\.pod(\.gz)?$", name):
            yield from marked(read(path), r"^=head[12] (.*)$", r"^(=|\s).*$", path.name.split(".")[0])
        elif re.search(r"/man/man\d/", name) and path.suffix == ".gz":
            yield from manual(read(path), path.name.split(".")[0])


def longer(sections, rng):
    """Half of the sections go on with those after them until they hold LONGEST words: the rest are as they come."""
    title, text, joining = "", "", False
    for heading, body in sections:
        if joining:
            text = f"{text} {body}"
        else:
            title, text, joining = heading, body, rng.random() < 0.5
        if not joining or len(text.split()) >= LONGEST:
            yield title, text
            joining = False


def read(path):
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8", "replace")


def marked(text, heading, dropped, top):
    title, lines = top, []
    for line in text.splitlines() + ["=head1 end"]:
        found = re.match(heading, line)
        if found:
            yield named(top, plain_pod(title)), plain_pod(tidy(" ".join(lines)))
            title, lines = found[1], []
        elif not re.match(dropped, line):
            lines.append(line)


def plain_pod(text):
    return re.sub(r"[A-Z]<+ ?([^<>]*?) ?>+", r"\1", text)


def manual(text, name):
    """Sections of a manual page; the title is what its NAME section says of it, and the section's own."""
    what, title, lines = name, "", []
    for line in text.splitlines() + [".SH end"]:
        if re.match(r"\.S[HS]\b", line):
            body = roff(" ".join(lines))
            if title.upper() == "NAME":
                what = body.replace(" - ", " ", 1) if " - " in body else name
            else:
                yield (what if title.upper() == "DESCRIPTION" else f"{name} {title.lower()}"), body
            title, lines = roff(line[3:]).strip('"'), []
        elif re.match(r"\.(BR?|IR?|RB|RI|BI|IB) ", line):
            lines.append(re.sub(r'"', "", line.split(" ", 1)[1]))
        elif line[:1] not in (".", "'"):
            lines.append(line)


def roff(text):
    text = re.sub(r"\\f[A-Z]|\\f\(..|\\[&|^]|\\s[-+]?\d", "", text.replace("\\-", "-").replace("\\(aq", "'"))
    return tidy(re.sub(r"\\\(..|\\\[[^]]*\]|\\", "", text))


def named(top, heading):
    if not heading or GENERIC.match(heading):
        return f"{top} {heading}".strip()
    return re.sub(r"^[\d.]+\s+", "", heading)


def sentences(text):
    return [part for part in re.split(r"(?<=[.!?])\s+(?=[A-Z0-9\"'])", text) if part]


def cut(text, words):
    """The first sentences of `text` that have at most `words` words together, at least one."""
    kept, count = [], 0
    for sentence in sentences(text):
        length = len(sentence.split())
        if kept and count + length > words:
            break
        kept.append(sentence)
        count += length
    return " ".join(" ".join(kept).split()[: words + 20])


def sections(folder, rng):
    """source -> its (title, text) that read like prose, in random order."""
    found = {}
    for source in SOURCES:
        place = folder / "x" / source
        if source == "descriptions":
            read_all = descriptions(folder)
        elif source == "wordnet-base":
            read_all = glosses(place)
        elif source.startswith("dict-"):
            read_all = dictionary(place)
        else:
            read_all = longer(pages(place), rng)
        seen, kept = set(), []
        for title, text in read_all:
            count = len(text.split())
            if count >= LEAST_WORDS.get(source, SHORTEST) and title and text[:80] not in seen and prose(title, text):
                seen.add(text[:80])
                kept.append((title, cut(text, LONGEST)))
        rng.shuffle(kept)
        found[source] = kept
    return found


def grams(text):
    """Hashes of every OVERLAP words in a row; of a shorter text, of all its words."""
    there = words(text)
    return {hash(tuple(there[at : at + OVERLAP])) for at in range(max(1, len(there) - OVERLAP + 1))}


def judged(data):
    """Hashes of all judged texts in `data`: every collection there, and STS-B's validation and test pairs."""
    found = set()
    for path in sorted(Path(data).glob("*/*.jsonl")):
        for line in path.open(encoding="utf-8"):
            entry = json.loads(line)
            if len(words(entry["text"])) >= OVERLAP:
                found |= grams(entry["text"])
    for name in ("validation", "test"):
        for a, b, _ in read_sts(data, name):
            found |= grams(a) | grams(b)
    return found


class Asker:
    """Makes queries of many forms for a passage."""

    def __init__(self, passages, rng):
        self.rng, self.counts = rng, collections.Counter()
        for _, _, text in passages:
            self.counts.update(set(words(text)))

    def rarest(self, text, count):
        """The `count` rarest words of `text` among the passages, in their order."""
        there = list(dict.fromkeys(word for word in words(text) if len(word) > 2))
        rare = set(sorted(there, key=self.counts.__getitem__)[:count])
        return [word for word in there if word in rare]

    def queries(self, source, title, text):
        """(query, passage without what the query was cut from or None, how sure it is that the passage answers it)."""
        rng, parts = self.rng, sentences(text)
        title = " ".join(title.split()[:24])
        form = "what is {}" if source == "wordnet-base" and rng.random() < 0.5 else rng.choice(FORMS)
        if form != "{}" and title[1:2].islower():
            title = title[0].lower() + title[1:]
        made = [(form.format(title), None, 0.5)]
        middle = [i for i, part in enumerate(parts) if 6 <= len(part.split()) <= 30]
        if middle:
            of = rng.choice(middle)
            chosen = parts[of]
            asked = VERB.match(chosen)
            counted = NUMBER.search(chosen)
            if counted and rng.random() < 0.7:
                before = chosen[: counted.start()].split()[-8:]
                made.append((f"How many {counted[1]} {' '.join(before)}?", None, 1.0))
            elif asked and rng.random() < 0.8:
                made.append((f"What {' '.join(asked[1].rstrip('.').split()[:12])}?", None, 1.0))
            else:
                made.append((" ".join(self.rarest(chosen, rng.randint(2, 5))), None, 0.5))
        if len(parts) > 2 and middle and rng.random() < 0.6:
            # A sentence as the query; mostly it leaves the passage, so that words alone do not give it away.
            at = rng.choice(middle)
            query, rest = parts[at], " ".join(parts[:at] + parts[at + 1 :])
            if rng.random() < 0.3:
                rare = set(self.rarest(query, 2))
                query = " ".join(word for word in query.split() if not set(words(word)) & rare)
            leaves = rng.random() < 0.7
            if leaves and at == of:  # with it goes the answer to the query before
                made[1] = (*made[1][:2], 0.3)
            made.append((query, rest if leaves else None, 0.3))
        return made


def collect(work, data, part=0):
    """`passages`, `queries`, and `groups` .

    Cached in `work`. Parts have no section in common.
    """
    path = Path(work) / f"texts-{part}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    folder = (Path(work) / "texts").resolve()
    fetch(folder)
    known, dropped = judged(data), 0
    rng, passages, rest_of = random.Random(12), [], []
    found = sections(folder, rng)
    rng = random.Random(100 + part)
    for source, wanted in SOURCES.items():
        for title, text in found[source][part * wanted : (part + 1) * wanted]:
            if (grams(text) | grams(title)) & known:
                dropped += 1
                continue
            short = cut(text, rng.choice(LENGTHS))
            rest_of.append(text[len(short) :].strip())
            passages.append((source, title, short))
    asker, texts, queries = Asker(passages, rng), [], []
    for own, (source, title, text) in enumerate(passages):
        first = len(queries)
        for query, rest, sure in asker.queries(source, title, text):
            text = rest or text
            queries.append((query, own, sure))
        if len(rest_of[own].split()) >= 30 and rng.random() < 0.7:
            # What follows the passage, as a need in 30 to 80 words.
            long = cut(rest_of[own], rng.choice((30, 40, 50, 60)))
            queries.append((f"{title}. {long}" if rng.random() < 0.3 else long, own, 0.3))
        # Half of the texts of an index start with their title, and some are no more than that.
        kind = rng.random()
        if kind < 0.12 and source not in ("wordnet-base", "dict-gcide"):
            text = title if len(title.split()) > 3 else f"{title}. {sentences(text)[0]}"
            queries[first + 1 :] = [(query, own, 0.0) for query, own, _ in queries[first + 1 :]]  # answers are gone
        elif kind < 0.55:
            text = f"{title}. {text}" if kind < 0.45 else f"{title} {text}"
        texts.append(text)
    rng.shuffle(queries)
    kept = [(query, own, sure) for query, own, sure in queries if query.strip() and not grams(query) & known]
    made = {"passages": texts, "queries": [query for query, *_ in kept], "groups": [group[1:] for group in kept],
            "dropped": {"sections": dropped, "queries": len(queries) - len(kept)}}
    path.write_text(json.dumps(made), encoding="utf-8")
    return made


def prose(title, text):
    """Whether this reads like prose: mostly letters, not the signature of a function, not a list of parameters."""
    letters = sum(char.isalpha() or char.isspace() for char in text)
    signature = re.search(r"[._()]\w", title) and " " not in title or re.search(r"\(\w+=|\[source\]|Parameters:", text[:300])
    return letters > 0.87 * len(text) and not signature and not GENERIC.match(title)


if __name__ == "__main__":
    import sys

    made = collect(*sys.argv[1:3], int((sys.argv + ["0"])[3]))
    print(len(made["passages"]), "passages of", sum(len(text.split()) for text in made["passages"]) / len(made["passages"]),
          "words,", len(made["queries"]), "queries, dropped", made["dropped"])
    for place in random.Random(0).sample(range(len(made["queries"])), 40):
        own, sure = made["groups"][place]
        print(f"\nQ {sure}: {made['queries'][place]}\n  P: {made['passages'][own][:250]}")
