"Is vision_ft/ what the notebooks export, and are the notebooks clean? Works on a copy and changes nothing here."
import os, shutil, subprocess, sys, tempfile
from pathlib import Path

root, bin_ = Path(__file__).resolve().parent.parent, Path(sys.executable).parent

def contents(folder, pattern):
    "Relative path → bytes of the files that match"
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob(pattern) if '.ipynb_checkpoints' not in p.parts}

def remake(to):
    "In folder `to`: the notebooks cleaned, and the library exported from them alone"
    shutil.copytree(root/'nbs', to/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints'))
    shutil.copy(root/'pyproject.toml', to)
    (to/'vision_ft').mkdir()
    shutil.copy(root/'vision_ft/__init__.py', to/'vision_ft')
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} # nbdev-export does nothing where this is set
    for tool in 'nbdev-export', 'nbdev-clean': subprocess.run([bin_/tool], cwd=to, env=env, check=True)

def main():
    with tempfile.TemporaryDirectory() as tmp:
        tmp = Path(tmp)
        remake(tmp)
        pairs = [(contents(root/d, pat), contents(tmp/d, pat), d, fix) for d, pat, fix in (
            ('vision_ft', '*.py', 'nbs/ is what counts: .venv/bin/nbdev-export, and git rm a module that no notebook makes'),
            ('nbs', '*.ipynb', '.venv/bin/nbdev-clean'))]
    bad = 0
    for here, there, d, fix in pairs:
        off = sorted(k for k in here.keys() | there.keys() if here.get(k) != there.get(k))
        if off: print(f'{d}/ is out of step: {", ".join(off)}. Fix: {fix}.', file=sys.stderr)
        else: print(f'{d}/ in step: {len(here)} files')
        bad += len(off)
    sys.exit(bad > 0)

if __name__ == '__main__': main()
