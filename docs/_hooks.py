"""What the site takes from outside of its folder, and notebooks as pages with the outputs that they were saved with."""

import pathlib

import nbconvert
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).resolve().parents[1]
FIGURE = ROOT / "bench/results/xeon/ratios.png"


def on_files(files: Files, config) -> Files:
    """Adds the bench's figure, and a page and its pictures for each notebook."""
    files.append(File.generated(config, "assets/ratios.png", abs_src_path=str(FIGURE)))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.remove(file)
        name = file.src_uri.removesuffix(".ipynb")
        stem = pathlib.PurePath(name).name
        settings = {"unique_key": stem, "output_files_dir": f"{stem}_files"}
        page, resources = nbconvert.MarkdownExporter().from_filename(file.abs_src_path, resources=settings)
        files.append(File.generated(config, f"{name}.md", content=page))
        for picture, content in resources["outputs"].items():
            uri = (pathlib.PurePosixPath(name).parent / picture).as_posix()
            files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown: str, **kwargs) -> str:
    """Leads from links to notebooks and the bench's figure, as they are in the repository, to what the site has."""
    return markdown.replace(".ipynb)", ".md)").replace(
        "../bench/results/xeon/ratios.png", "assets/ratios.png"
    )
