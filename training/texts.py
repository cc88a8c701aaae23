"""Passages and queries to distil ranking on, read from packages of Debian 12 (bookworm).

Nothing is taken from a test collection. The packages come from apt, into a folder
of their own; nothing is installed. `collect` gives the same texts for the same
packages and seed.
"""

import gzip
import html.parser
import random
import re
import subprocess
from pathlib import Path

# Package -> how many passages of it, how it is read, licence of its text.
SOURCES = {
    "descriptions": (4500, "GPL-2+ or the licence of each package (synopses and descriptions of Debian's packages)"),
    "dict-foldoc": (1500, "GFDL-1.1+, no invariant sections (Free On-line Dictionary of Computing)"),
    "wordnet-base": (1200, "WordNet licence, BSD-like (glosses of WordNet 3.0)"),
    "calculix-ccx-doc": (400, "GPL-2 (finite elements: solids, heat, flow)"),
    "yade-doc": (150, "GPL-2+ (particle mechanics)"),
    "python-sklearn-doc": (600, "BSD-3 (machine learning)"),
    "python-statsmodels-doc": (300, "BSD-3 (statistics)"),
    "python-astropy-doc": (350, "BSD-3 (astronomy)"),
    "grass-doc": (600, "GPL-2+ (geography)"),
    "octave-doc": (400, "GPL-3+ (numerical methods)"),
    "dynare-doc": (80, "GFDL-1.3+, no invariant sections (economics)"),
    "debian-handbook": (250, "GPL-2+ or CC BY-SA 3.0 (administration)"),
    "libreoffice-help-en-us": (450, "MPL-2.0 (office programs)"),
    "gimp-help-en": (400, "GFDL-1.2+, no invariant sections (images)"),
    "gnome-user-docs": (150, "CC BY-SA 3.0 (desktop)"),
    "perl-doc": (500, "Artistic or GPL-1+ (programming)"),
    "manpages": (150, "free licences, one a page (system)"),
    "manpages-dev": (500, "free licences, one a page (system calls, C library)"),
    "git-man": (300, "GPL-2 (version control)"),
}
LEAST_WORDS = {"wordnet-base": 4, "descriptions": 35, "dict-foldoc": 25}
SHORTEST, LONGEST = 50, 190  # words of a passage; longer sections are cut at the end of a sentence
GENERIC = re.compile(
    r"^(introduction|overview|examples?|notes?|description|see also|details?|usage|options?|synopsis|summary|"
    r"references?|page contents|table of contents|getting started|background|name|author.?|colophon|copyright|bugs|known issues|contents?)\b.{0,12}$", re.I
)
# A title alone reads like a label; people also ask. {} is the title.
FORMS = ["{}", "{}", "{}", "what is {}", "how does {} work", "what is known about {}", "explain {}",
         "what methods are there for {}", "information on {}", "what are the properties of {}", "when is {} used"]


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
            words = [fields[4 + 2 * i].replace("_", " ") for i in range(int(fields[3], 16))]
            yield re.sub(r"\(.\)$", "", words[0]), tidy(gloss.replace('"', ""))


def dictionary(place):
    text = gzip.decompress(next(place.rglob("foldoc.dict.dz")).read_bytes()).decode("utf-8", "replace")
    for entry in re.split(r"\n(?=\S)", text):
        title, _, body = entry.partition("\n")
        if "%%%" not in title and not title.startswith("00-"):
            body = re.sub(r"\(\d{4}-\d\d-\d\d\)|<[^<>]*>|[{}]", "", body)
            yield tidy(title), tidy(body)


def pages(place):
    """(title, text) of every section of the HTML, Mallard, POD and man pages under `place`."""
    files = sorted(path for path in place.rglob("*") if path.is_file() and not path.is_symlink())
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


def collect(folder, seed=12):
    """Fetches what is missing, and gives `passages` (source, title, text) and `queries` (text, source, own passage)."""
    folder = Path(folder).resolve()
    fetch(folder)
    rng, passages, queries = random.Random(seed), [], []
    for source, (wanted, _) in SOURCES.items():
        place = folder / "x" / source
        reader = {"descriptions": lambda: descriptions(folder), "wordnet-base": lambda: glosses(place),
                  "dict-foldoc": lambda: dictionary(place)}.get(source, lambda: longer(pages(place), rng))
        seen, found = set(), []
        for title, text in reader():
            words = text.split()
            if len(words) >= LEAST_WORDS.get(source, SHORTEST) and title and text[:80] not in seen and prose(title, text):
                seen.add(text[:80])
                found.append((title, text))
        rng.shuffle(found)
        for title, text in found[:wanted]:
            limit = rng.choice((80, 130, 170, LONGEST))
            passages.append((source, title, cut(text, limit)))
    for own, (source, title, text) in enumerate(passages):
        parts = sentences(text)
        title = " ".join(title.split()[:24])
        form = "what is {}" if source == "wordnet-base" and rng.random() < 0.5 else rng.choice(FORMS)
        queries.append((form.format(title[0].lower() + title[1:] if form != "{}" and title[1:2].islower() else title), source, own))
        middle = [i for i, part in enumerate(parts) if 6 <= len(part.split()) <= 30]
        if len(parts) > 2 and middle:
            # A sentence as the query; mostly it leaves the passage, so that words alone do not give it away.
            chosen = rng.choice(middle)
            queries.append((parts[chosen], source, own))
            if rng.random() < 0.7:
                passages[own] = (source, title, " ".join(parts[:chosen] + parts[chosen + 1 :]))
    return passages, queries


def prose(title, text):
    """Whether this reads like prose: mostly letters, not the signature of a function, not a list of parameters."""
    letters = sum(char.isalpha() or char.isspace() for char in text)
    signature = re.search(r"[._()]\w", title) and " " not in title or re.search(r"\(\w+=|\[source\]|Parameters:", text[:300])
    return letters > 0.87 * len(text) and not signature and not GENERIC.match(title)


if __name__ == "__main__":
    import collections
    import sys

    passages, queries = collect(sys.argv[1])
    counts = collections.Counter(source for source, *_ in passages)
    for source, count in counts.items():
        mean = sum(len(text.split()) for s, _, text in passages if s == source) / count
        print(f"{source}: {count} passages, mean {mean:.0f} words")
    show = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    for text, source, own in show.sample(queries, 25):
        print(f"\n[{source}] Q: {text}\n  P: {passages[own][2][:300]}")
    print(len(passages), len(queries))
