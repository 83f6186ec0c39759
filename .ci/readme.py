"The index with what it shows of other chapters, README.md and its figures: `readme.py` writes them, `readme.py --check` says whether they are in step"
import base64, re, sys
from pathlib import Path
import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

root = Path(__file__).resolve().parent.parent
head = '<!-- Generated from nbs/index.ipynb by .ci/readme.py. Edit the notebook, not this file. -->\n\n'

def directives(src):
    "Names of the `#| …` lines that open a cell, such as {'export'}, and the source without them"
    lines = src.splitlines(keepends=True)
    n = next((i for i, l in enumerate(lines) if not l.startswith('#|')), len(lines))
    return {l[2:].replace(':', ' ', 1).strip() for l in lines[:n]}, ''.join(lines[n:]).strip('\n')

def tidy(html, styles=r' scoped'):
    "A table without what pandas adds for Jupyter's sake; `styles` matches the attributes of the style sheets to drop"
    html = re.sub(rf'<style{styles}>.*?</style>', '', html, flags=re.S).strip()
    html = re.sub(r'(<t[rh]|<table)(?: (?:border|class|style)="[^"]*")+', r'\1', html)
    return re.sub(r'^<div>\s*(<table>.*</table>)\s*</div>$', r'\1', html, flags=re.S)

def seen(html):
    "Is there text or an image in it? A finished progress bar leaves neither"
    return re.search(r'<(img|svg|video|canvas)\b', html) or re.sub(r'<style.*?</style>|<[^>]*>', '', html, flags=re.S).strip()

def tidy_output(out):
    "`out` with one representation, the best for reading; None if there is nothing to see"
    if out.output_type == 'error': return out
    if out.output_type == 'stream':
        out.text = re.sub(r'\x1b\[[0-9;]*m', '', out.text)
        return out if out.text.strip() else None
    data = {k: tidy(v) if k == 'text/html' else v for k, v in out.data.items()}
    kind = next((k for k in ('text/markdown', 'image/png', 'image/jpeg', 'image/svg+xml', 'text/html', 'text/plain') if k in data), None)
    if not kind or (kind == 'text/html' and not seen(data[kind])): return None
    out.data = {kind: data[kind]}
    return out

def describe(out, names):
    "The text for readers who can't see a figure, as `#| fig-alt: …` has it, put where nbconvert looks for it"
    alt = next((n.split(maxsplit=1)[1] for n in names if n.startswith('fig-alt ')), None)
    if alt and 'image/png' in out.get('data', {}): out.metadata['image/png'] = dict(alt=alt)
    return out

def visible(nb):
    "`nb` as a reader sees it: hidden cells and directives gone, outputs tidy; exported cells are marked in their metadata"
    cells = []
    for c in nb.cells:
        if c.cell_type == 'raw': continue
        names, src = directives(c.source)
        if names & {'hide', 'include false'}: continue
        c.source = '' if names & {'hide_input', 'echo false'} else src
        if not c.source: c.metadata['transient'] = {'remove_source': True} # what nbconvert's templates look for
        c.metadata['exported'] = bool(names & {'export', 'exports'})
        if c.cell_type == 'code':
            c.outputs = [] if names & {'hide_output', 'output false'} else [describe(o, names) for o in map(tidy_output, c.outputs) if o]
        if c.source or c.get('outputs'): cells.append(c)
    nb.cells = cells
    return nb

def links(md, change):
    "Markdown with each relative link `l` (outside of code) replaced by `change(l)`"
    code = re.compile(r'(```.*?```|`[^`\n]*`)', re.S)
    link = re.compile(r'(\]\(|(?:href|src)=")(?![a-z][a-z0-9+.-]*:|[#/])([^)\s"]+)')
    return ''.join(p if i % 2 else link.sub(lambda m: m[1]+change(m[2]), p) for i, p in enumerate(code.split(md)))

def relink(nb, change):
    "`links` on the Markdown cells of `nb` and on outputs in Markdown"
    for c in nb.cells:
        if c.cell_type == 'markdown': c.source = links(c.source, change)
        for o in c.get('outputs', []):
            if 'text/markdown' in o.get('data', {}): o.data['text/markdown'] = links(o.data['text/markdown'], change)
    return nb

def from_root(link):
    "A link as it stands in nbs/, as it must stand in the README; it has to lead to something"
    path, _, anchor = link.partition('#')
    full = (root/'nbs'/path).resolve()
    if not full.exists() or root not in full.parents: sys.exit(f'nbs/index.ipynb links to {link}, which is not in the repository. Fix: links are relative to nbs/.')
    return full.relative_to(root).as_posix() + (f'#{anchor}' if anchor else '')

def as_file(out, figures):
    "A figure becomes a link to a file, whose bytes are added to `figures`"
    if 'image/png' not in out.get('data', {}): return
    name = f'nbs/index_files/{len(figures)+1}.png'
    figures[name] = base64.b64decode(out.data['image/png'])
    alt = out.metadata.get('image/png', {}).get('alt')
    if not alt: sys.exit('A figure of nbs/index.ipynb has no words for those who cannot see it. Fix: open its cell with #| fig-alt: …')
    out.data = {'text/markdown': f'![{alt}]({name})'}

def shown_anew(path):
    """The notebook with its hidden cells run again, which read what other chapters show: titles, summaries, outputs

    Cells that readers see keep their outputs: one of them trains."""
    nb = nbformat.read(path, 4)
    where = dict(metadata=dict(path=str(path.parent)))
    client = NotebookClient(nb, extra_arguments=['--log-level=50'], record_timing=False, resources=where)
    with client.setup_kernel():
        for i, c in enumerate(nb.cells):
            if c.cell_type == 'code' and directives(c.source)[0] & {'hide', 'hide_input'}: client.execute_cell(c, i)
    for c in nb.cells:
        for o in [c, *c.get('outputs', [])]:
            if 'execution_count' in o: o.execution_count = None
    return nb

def render(path=root/'nbs/index.ipynb'):
    "Path → bytes of the index, of the README and of the figures in it"
    if not path.exists(): sys.exit(f'{path.name} is missing. Fix: README.md is made from nbs/index.ipynb, so write that.')
    nb = shown_anew(path)
    index = nbformat.writes(nb)+'\n'
    figures = {}
    nb = relink(visible(nb), from_root)
    for c in nb.cells:
        for o in c.get('outputs', []):
            as_file(o, figures)
            if 'text/html' in o.get('data', {}): o.data['text/html'] = tidy(o.data['text/html'], '[^>]*')
    text, _ = MarkdownExporter().from_notebook_node(nb)
    text = head + re.sub(r'\n{3,}', '\n\n', re.sub(r'^[ \t]+$', '', text, flags=re.M)).strip() + '\n'
    return {'nbs/index.ipynb': index.encode(), 'README.md': text.encode()} | figures

def main():
    new = render()
    off = [name for name, data in new.items() if not (root/name).exists() or (root/name).read_bytes() != data]
    if off and '--check' in sys.argv: sys.exit(f'Out of step with the chapters: {", ".join(off)}. Fix: .venv/bin/python .ci/readme.py')
    for name in off:
        (root/name).parent.mkdir(exist_ok=True)
        (root/name).write_bytes(new[name])
    print(', '.join(off), 'written') if off else print(', '.join(new), 'in step')

if __name__ == '__main__': main()
