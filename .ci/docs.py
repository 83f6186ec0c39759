"`docs.py [OUT]`: the chapters as a site of plain files in _docs/ or OUT, with their stored outputs; no script, nothing fetched, opens from the disk"
import html, os, re, shutil, sys
from pathlib import Path
import nbformat
from latex2mathml.converter import convert as mathml
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter
from readme import relink, root, visible

nbs, out = root/'nbs', Path(sys.argv[1] if len(sys.argv) > 1 else root/'_docs').resolve()
floors = {'': 'Foundations', 'data': 'Data', 'classify': 'Classification', 'detect': 'Detection', 'segment': 'Segmentation',
          'ship': 'Shipping', 'tutorials': 'Tutorials', 'bench': 'Benchmarks'} # folder → heading, in reading order

css = '''
:root { --ink: #1f2933; --soft: #5b6770; --line: #e3e7ea; --wash: #f6f8f9; --link: #0b63a5; --made: #2f855a }
* { box-sizing: border-box }
body { margin: 0; color: var(--ink); background: #fff; font: 17px/1.6 system-ui, "Segoe UI", "Liberation Sans", "DejaVu Sans", sans-serif }
main, nav, footer { max-width: 60rem; margin: 0 auto; padding: 0 1.25rem }
nav { display: flex; justify-content: space-between; gap: 1rem; padding-top: 1rem; padding-bottom: .8rem; font-size: .9rem }
header { border-bottom: 1px solid var(--line) }
footer { border-top: 1px solid var(--line); margin-top: 3rem; padding-left: 0; padding-right: 0 }
.text > * { max-width: 46rem }
a { color: var(--link); text-decoration: none } a:hover { text-decoration: underline }
h1, h2, h3 { line-height: 1.25; margin: 2.2em 0 .6em } h1 { font-size: 2rem; margin-top: 1.2em } h2 { font-size: 1.4rem } h3 { font-size: 1.12rem }
a.anchor-link { display: none }
blockquote { margin: 1em 0; padding: .1em 1em; color: var(--soft); border-left: 3px solid var(--line) } blockquote p { margin: .4em 0 }
pre, code { font-family: ui-monospace, "Cascadia Mono", "Liberation Mono", "DejaVu Sans Mono", monospace; font-size: .86em }
pre { margin: 0; padding: .7em .9em; overflow-x: auto; line-height: 1.45 } code { background: var(--wash); padding: .1em .25em; border-radius: 3px }
pre code { padding: 0; background: none } pre, .highlight { background: var(--wash); border-radius: 4px }
.cell { margin: .9em 0 } .output { margin: .35em 0 0 } .output pre { background: none; border-left: 3px solid var(--line); border-radius: 0 }
.output img, .output svg, .output video { max-width: 100%; height: auto } .output { overflow-x: auto }
.made .highlight { border-left: 3px solid var(--made); border-radius: 0 4px 4px 0 }
.made::before { content: attr(data-module); display: block; text-align: right; font-size: .72rem; color: var(--made); line-height: 1.5 }
table { border-collapse: collapse; font-size: .88rem; margin: .8em 0; font-variant-numeric: tabular-nums }
th, td { padding: .25em .7em; border-bottom: 1px solid var(--line); text-align: right } thead th { border-bottom: 1px solid var(--soft) }
.text table th, .text table td { text-align: left; vertical-align: top }
img { max-width: 100% } math[display=block] { margin: 1em 0 }
dl.chapters { max-width: 46rem } dl.chapters dt { font-weight: 600; margin-top: .8em } dl.chapters dd { margin: .1em 0 0; color: var(--soft) } dt .no { display: inline-block; min-width: 2.2em; color: var(--soft); font-weight: 400 }
'''

class Renderer(IPythonRenderer):
    "Formulas become MathML, which browsers draw by themselves"
    def inline_math(self, body): return mathml(body)
    def block_math(self, body): return mathml(body, display='block')
    def multiline_math(self, text): return self.block_math(text.strip('$'))
    def latex_environment(self, name, body): return self.block_math(rf'\begin{{{name}}}{body}\end{{{name}}}')

def markdown(src): return MarkdownWithMath(renderer=Renderer(escape=False)).render(src)

class Chapter:
    "A notebook with its place on the site"
    def __init__(self, path):
        self.path, self.rel, self.nb = path, path.relative_to(nbs), nbformat.read(path, 4)
        self.floor = self.rel.parent.as_posix().split('/')[0].strip('.')
        self.number = (re.match(r'\d+', path.stem) or [''])[0]
        self.url = 'overview.html' if self.rel.as_posix() == 'index.ipynb' else self.rel.with_suffix('.html').as_posix()
        md = '\n\n'.join(c.source for c in self.nb.cells if c.cell_type == 'markdown')
        self.title = (re.search(r'^# (.+)$', md, re.M) or ['', path.stem])[1].strip()
        self.name = re.sub(r'^[0-9]+ · ', '', self.title)
        self.summary = ' '.join(re.findall(r'^> ?(.*)$', (re.search(r'(^>.*\n?)+', md, re.M) or [''])[0], re.M))
        src = '\n'.join(c.source for c in self.nb.cells if c.cell_type == 'code')
        self.module = (re.search(r'^#\|\s*default_exp\s+(\S+)', src, re.M) or ['', ''])[1]

    def to(self, url): return os.path.relpath(url, Path(self.url).parent).replace(os.sep, '/')

    def link(self, target):
        "A relative link of the notebook as it must stand on the site: to a page, or to a copy of the file"
        path, _, anchor = target.partition('#')
        full = (self.path.parent/path).resolve()
        if not full.exists() or root not in full.parents: sys.exit(f'{self.rel} links to {target}, which is not in the repository. Fix: links are relative to the notebook.')
        if full.suffix == '.ipynb' and nbs in full.parents: url = Chapter(full).url
        elif full.is_dir(): url = 'index.html'
        else:
            url = f'files/{full.relative_to(root).as_posix()}'
            (out/url).parent.mkdir(parents=True, exist_ok=True); shutil.copy(full, out/url)
        return self.to(url) + (f'#{anchor}' if anchor else '')

    def body(self):
        "The cells as HTML"
        return ''.join(cell_html(c, self.module) for c in relink(visible(self.nb), self.link).cells)

def cell_html(c, module):
    "One cell through nbconvert, wrapped in the few classes that the style sheet knows"
    if c.cell_type == 'markdown': return f'<section class="text">{markdown(c.source)}</section>\n'
    body, _ = exporter.from_notebook_node(nbformat.v4.new_notebook(cells=[c]))
    made = f' made" data-module="vision_ft.{module}' if c.metadata['exported'] and c.source else ''
    return f'<section class="cell{made}">{body}</section>\n'

def page(title, nav, body, url):
    "A whole page; `nav` stands above and below"
    style = os.path.relpath('style.css', Path(url).parent).replace(os.sep, '/')
    return f'''<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title><link rel="stylesheet" href="{style}"></head>
<body>{nav and f'<header>{nav}</header>'}<main>
{body}</main>{nav and f'<footer>{nav}</footer>'}</body></html>
'''

def arrow(here, there, text): return f'<a href="{here.to(there.url)}">{text.format(inline(there.title))}</a>' if there else '<span></span>'
def inline(md): return re.sub(r'^<p>(.*)</p>$', r'\1', markdown(md).strip(), flags=re.S)

def contents(chapters, start):
    "The first page: what there is, floor by floor"
    parts = [f'<h1>{inline(start.title)}</h1>\n<blockquote>{markdown(start.summary)}</blockquote>\n<p><a href="{start.url}">What this is and how to begin</a></p>' if start else '<h1>vision_ft</h1>']
    for floor in dict.fromkeys(c.floor for c in chapters):
        rows = [f'<dt><span class="no">{c.number}</span><a href="{c.url}">{inline(c.name)}</a></dt><dd>{inline(c.summary)}</dd>' for c in chapters if c.floor == floor]
        parts.append(f'<h2>{floors.get(floor, floor.capitalize())}</h2>\n<dl class="chapters">\n' + '\n'.join(rows) + '\n</dl>')
    return '\n'.join(parts)

def main():
    global exporter
    exporter = HTMLExporter(template_name='basic', exclude_input_prompt=True, exclude_output_prompt=True)
    exporter.log.setLevel('ERROR') # else it complains about images without a description
    shutil.rmtree(out, ignore_errors=True); out.mkdir()
    (out/'style.css').write_text(css + HtmlFormatter(style='friendly').get_style_defs('.highlight') + '\n.highlight { background: var(--wash) }\n')
    found = [Chapter(p) for p in nbs.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts]
    start = next((c for c in found if c.url == 'overview.html'), None)
    order = list(floors)
    chapters = sorted((c for c in found if c is not start), key=lambda c: (order.index(c.floor) if c.floor in order else len(order), c.floor, c.rel.as_posix()))
    (out/'index.html').write_text(page('vision_ft', '', contents(chapters, start), 'index.html'), encoding='utf-8')
    path = ([start] if start else []) + chapters
    for before, c, after in zip([None, *path], path, [*path[1:], None]):
        nav = f'<nav>{arrow(c, before, "← {}")}<a href="{c.to("index.html")}">All chapters</a>{arrow(c, after, "{} →")}</nav>'
        (out/c.url).parent.mkdir(parents=True, exist_ok=True)
        (out/c.url).write_text(page(f'{c.title} · vision_ft', nav, c.body(), c.url), encoding='utf-8')
    print(f'{len(path)} chapters: open {os.path.relpath(out/"index.html")}')

if __name__ == '__main__': main()
