"""Write .dvc/plots_page.html, the page of `dvc plots show` and `dvc plots diff` with Vega inside: it works offline.

DVC's own page loads Vega from a CDN. `.dvc/config` names this one. The packages come from npm; to take newer ones,
change the versions and run `python docs/plots_page.py`. Vega-Lite 5 is what the templates of DVC and of this project
are written for.
"""

import hashlib
import io
import subprocess
import tarfile
import tempfile
from pathlib import Path

PACKAGES = {
    "vega": ("5.33.1", "135831f62920743d4467bec0df2d78eedd16fa3444077419f1dfc9aa0d55e6da"),
    "vega-lite": ("5.23.0", "9525bc3368d62c580e8fcbf5db63c4a95c04052fe32ced063817c677cc98801c"),
    "vega-embed": ("6.29.0", "16512fd17119051ee3f859467e174fe1503ff86c0a4743aaf8b7c10da3dd83e0"),
}
"""{package: its version, and the SHA-256 of its script in the page}; another script is refused."""

PAGE = Path(__file__).parents[1] / ".dvc/plots_page.html"

HEAD = """<!DOCTYPE html>
<html lang="en">
<!-- Made by docs/plots_page.py, with these packages from npm inside: {packages}.

{licence}

They hold parts of d3 (ISC, Copyright Mike Bostock), topojson-client (ISC, Copyright Michael Bostock), delaunator (ISC,
Copyright Mapbox), robust-predicates (Unlicense), fast-json-patch (MIT, Copyright Joachim Wester), semver (ISC,
Copyright Isaac Z. Schlueter), json-stringify-pretty-compact (MIT, Copyright Simon Lydell) and tslib (0BSD).

ISC: Permission to use, copy, modify, and/or distribute this software for any purpose with or without fee is hereby
granted, provided that the above copyright notice and this permission notice appear in all copies. THE SOFTWARE IS
PROVIDED "AS IS" AND THE AUTHOR DISCLAIMS ALL WARRANTIES WITH REGARD TO THIS SOFTWARE INCLUDING ALL IMPLIED WARRANTIES
OF MERCHANTABILITY AND FITNESS. IN NO EVENT SHALL THE AUTHOR BE LIABLE FOR ANY SPECIAL, DIRECT, INDIRECT, OR
CONSEQUENTIAL DAMAGES OR ANY DAMAGES WHATSOEVER RESULTING FROM LOSS OF USE, DATA OR PROFITS, WHETHER IN AN ACTION OF
CONTRACT, NEGLIGENCE OR OTHER TORTIOUS ACTION, ARISING OUT OF OR IN CONNECTION WITH THE USE OR PERFORMANCE OF THIS
SOFTWARE.

MIT: Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions: The above copyright notice and
this permission notice shall be included in all copies or substantial portions of the Software. THE SOFTWARE IS PROVIDED
"AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT
HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE,
ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
-->
<head>
<meta charset="utf-8">
{{refresh_tag}}
<title>DVC plots</title>
<style>
  body {{ font-family: system-ui, sans-serif; margin: 1rem; }}
  main {{ display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; }}
  main > div:has(img) {{ white-space: normal !important; border-color: #ccc !important; max-width: 100%; }}
  main img {{ max-width: min(1100px, 90vw); height: auto; }}
</style>
"""
BODY = """</head>
<body>
<main>
{plot_divs}
</main>
</body>
</html>
"""


def page() -> str:
    """The page, its packages fetched from npm."""
    scripts, licences = [], {}
    for name, (version, sha256) in PACKAGES.items():
        with tempfile.TemporaryDirectory() as folder:
            command = ["npm", "pack", "--silent", "--pack-destination", folder, f"{name}@{version}"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            with tarfile.open(next(Path(folder).iterdir())) as archive:
                script = text(archive, f"package/build/{name}.min.js").rpartition("//# sourceMappingURL")[0].strip()
                if (found := hashlib.sha256(script.encode()).hexdigest()) != sha256:
                    raise SystemExit(f"error: {name} {version} is another script than expected, of SHA-256 {found}")
                scripts.append(script)
                if "package/LICENSE" in archive.getnames():  # vega has none of its own; it is that of vega-lite
                    licences[name] = text(archive, "package/LICENSE")
    packages = ", ".join(f"{name} {version}" for name, (version, _) in PACKAGES.items())
    head = HEAD.format(packages=packages, licence=licences["vega-lite"].strip())
    return head + "".join(f"<script>{script}</script>\n" for script in scripts) + BODY


def text(archive: tarfile.TarFile, name: str) -> str:
    """A text file of an archive."""
    return io.TextIOWrapper(archive.extractfile(name), encoding="utf-8").read()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
