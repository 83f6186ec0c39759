"""What nbdev-clean leaves undone: `tidy.py [NB …]`, by default for all in nbs/; with --check it only says what isn't tidy

Cells that readers needn't see are folded in JupyterLab. Progress is not stored: a bar is dead without its kernel."""
import json, sys
from pathlib import Path
from readme import directives, root

folded = {'hide', 'hide_input', 'include false', 'echo false'}

def notebooks(folder=root/'nbs'): return sorted(p for p in folder.rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)

def is_progress(out):
    "A widget, or what was said on the standard error; warnings stay, so that somebody sees them"
    if out['output_type'] == 'stream': return out['name'] == 'stderr' and 'Warning: ' not in ''.join(out['text'])
    return any('widget' in kind for kind in out.get('data', {}))

def tidy_cell(cell):
    "Folded if readers needn't see it, open if they should; outputs without progress"
    meta = {k: v for k, v in cell['metadata'].items() if k != 'jupyter'}
    if cell['cell_type'] != 'code': return cell | dict(metadata=meta)
    names, _ = directives(''.join(cell['source']))
    if names & folded: meta['jupyter'] = dict(source_hidden=True)
    return cell | dict(metadata=meta, outputs=[o for o in cell['outputs'] if not is_progress(o)])

def tidy(nb):
    "A notebook as it is committed"
    meta = {k: v for k, v in nb['metadata'].items() if k != 'widgets'}
    return nb | dict(cells=[tidy_cell(c) for c in nb['cells']], metadata=meta)

def main(args):
    check, paths = '--check' in args, [Path(a) for a in args if a != '--check'] or notebooks()
    found = {p: json.loads(p.read_text(encoding='utf-8')) for p in paths}
    off = {p: new for p, nb in found.items() if (new := tidy(nb)) != nb}
    names = ', '.join(p.name for p in off)
    if check and off: sys.exit(f'Not tidy: {names}. Fix: .venv/bin/python .ci/tidy.py')
    for p, nb in off.items():
        text = json.dumps(nb, sort_keys=True, indent=1, ensure_ascii=False)+'\n'
        p.write_text(text, encoding='utf-8')
    print(f'{len(found)} notebooks tidy' + (f', changed: {names}' if off else ''))

if __name__ == '__main__': main(sys.argv[1:])
