"""Says which links and paths in the Markdown files lead nowhere: `python3 .ci/links.py`."""

import pathlib
import re
import subprocess
import sys

LINK = re.compile(r"\]\(([^)#\s]+)[^)\s]*\)")
# Files and folders of the repository's root; shorter ones, such as `queue/watch/`, are of src.
PATH = re.compile(r"`((?:src|tests|proto|docs|examples|migrations)/[^`\s]*|[a-z_]+(?:/[a-z_]+)*(?:\.rs|/))`")
ROOT = ("src/", "tests/", "proto/", "docs/", "examples/", "migrations/")

listed = subprocess.run(["git", "ls-files", "*.md"], check=True, capture_output=True, text=True)
# A file may be taken away and not committed yet.
files = [path for path in map(pathlib.Path, listed.stdout.split()) if path.exists()]
dead = []
looked = 0
for file in files:
    # What is in a block of code is an example.
    text = re.sub(r"^```.*?^```$", "", file.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in LINK.findall(text):
        if "://" in link or link.startswith("mailto:"):
            continue
        looked += 1
        if not (file.parent / link).exists():
            dead.append(f"{file}: link to {link}")
    for path in PATH.findall(text):
        looked += 1
        if path.startswith(ROOT):
            is_there = any(pathlib.Path().glob(path))
        else:
            # `streams.rs` beside a path that was named in full.
            is_there = any(pathlib.Path("src").glob(f"**/{path}"))
        if not is_there:
            dead.append(f"{file}: {path}")
for line in dead:
    print(line)
print(f"{looked} links and paths in {len(files)} files, {len(dead)} of them dead")
sys.exit(bool(dead or not looked))
