"""Documents that are partly written by a script: what stands between two marks is its own, a part for each kind of CPU that
it ran on; the rest is kept."""
import pathlib
import re

END = "<!-- end of measured -->"


def cpu() -> str:
    """The kind of this machine's CPU, such as AMD EPYC (family 25, model 17)."""
    text = pathlib.Path("/proc/cpuinfo").read_text()
    name, family, model = (re.search(rf"^{key}\s*: (.*)$", text, re.M)[1] for key in ("model name", "cpu family", "model"))
    return f"{name} (family {family}, model {model})"


def picture(path: pathlib.Path) -> pathlib.Path:
    """The file name of this kind of CPU's."""
    kind = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)|family|model", "", cpu().lower())).strip("-")
    return path.with_stem(f"{path.stem}-{kind}")


def put(path: pathlib.Path, script: str, text: str, title: str) -> None:
    """text takes the place of what `script` wrote here before, or follows what it wrote on other CPUs, or ends the document."""
    mark = f"<!-- measured: written by {script} on "
    begin = f"{mark}{cpu()} -->"
    old = path.read_text() if path.exists() else f"# {title}\n"
    if begin not in old:
        at = old.index(END, old.rindex(mark)) + len(END) if mark in old else len(old)
        old = f"{old[:at].rstrip()}\n\n{begin}\n{END}{old[at:]}"
    before, rest = old.split(begin, 1)
    path.write_text(f"{before}{begin}\n{text.strip()}\n{END}{rest.split(END, 1)[1].rstrip()}\n")


def table(head: list, rows: list) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
