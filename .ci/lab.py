"""`lab.py [FOLDER]`: a copy of the chapters in .lab or FOLDER, to run and change at will; git knows nothing of it

Each time, the copy follows the repository. What a reader has written stays: where the chapter has changed too,
the reader's version moves aside as NAME.yours.ipynb. Outputs alone are no change."""
import hashlib, json, os, shutil, sys
from pathlib import Path
from tidy import notebooks, root

def fingerprint(path):
    "Hash of what stands in the cells, or of a file that is no notebook; None if there is no file"
    if not path.exists(): return None
    data = path.read_bytes()
    try: data = json.dumps([[c['cell_type'], ''.join(c['source'])] for c in json.loads(data)['cells']]).encode()
    except (ValueError, KeyError, TypeError): pass
    return hashlib.sha256(data).hexdigest()

def replace(source, copy):
    "Copy at one stroke: a reader who interrupts has the old file or the new one"
    copy.parent.mkdir(parents=True, exist_ok=True)
    part = copy.with_name(f'.{copy.name}.part')
    shutil.copyfile(source, part)
    os.replace(part, copy)

def aside(copy):
    "A free name for the reader's version"
    names = (copy.with_name(f'{copy.stem}.yours{n or ""}{copy.suffix}') for n in range(1000))
    return next(p for p in names if not p.exists())

def refresh(source, copy, before):
    "Bring one copy up to date; `before` is the fingerprint of what was copied last. The reader's version if it moved aside"
    now, new, yours = fingerprint(copy), fingerprint(source), None
    if now is not None and new in (before, now): return # the chapter is what it was: so is the copy
    if now not in (None, before): os.replace(copy, yours := aside(copy))
    replace(source, copy)
    return yours

def copy_chapters(lab):
    "All notebooks, and the page that they link to, in folder `lab`; the versions of readers that moved aside"
    lab.mkdir(exist_ok=True)
    log = lab/'.copied.json'
    before = json.loads(log.read_text()) if log.exists() else {}
    sources = {p.relative_to(root).as_posix(): p for p in [*notebooks(), root/'CONTRIBUTING.md']}
    moved = [y for name, p in sources.items() if (y := refresh(p, lab/name, before.get(name)))]
    for name in before.keys() - sources.keys(): # a chapter that is gone
        if fingerprint(lab/name) == before[name]: (lab/name).unlink()
    log.write_text(json.dumps({name: fingerprint(p) for name, p in sources.items()}))
    return moved

def main(args):
    lab = Path(args[0]) if args else root/'.lab'
    for yours in copy_chapters(lab): print(f'The chapter has changed since; what you wrote is in {os.path.relpath(yours)}')
    print(f'The chapters are in {os.path.relpath(lab)}: run and change them at will, the repository stays as it is')

if __name__ == '__main__': main(sys.argv[1:])
