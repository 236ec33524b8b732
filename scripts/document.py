"""Documents that are partly written by scripts: what stands between two marks is a script's own, often a part for each kind
of CPU that it ran on; the rest is kept."""
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


def splice(path: pathlib.Path, begin: str, end: str, text: str, title: str, kin: str = "") -> None:
    """text takes the place of what stands between the marks. Where they are not, they follow the last part whose mark begins
    as `kin` does, or end the document."""
    old = path.read_text() if path.exists() else f"# {title}\n"
    if begin not in old:
        at = old.index(end, old.rindex(kin)) + len(end) if kin and kin in old else len(old)
        old = f"{old[:at].rstrip()}\n\n{begin}\n{end}{old[at:]}"
    before, rest = old.split(begin, 1)
    path.write_text(f"{before}{begin}\n{text.strip()}\n{end}{rest.split(end, 1)[1].rstrip()}\n")


def put(path: pathlib.Path, script: str, text: str, title: str) -> None:
    """The part that `script` writes on this kind of CPU, behind those of others."""
    mark = f"<!-- measured: written by {script} on "
    splice(path, f"{mark}{cpu()} -->", END, text, title, mark)


def table(head: list, rows: list) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
