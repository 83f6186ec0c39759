"What holds for the repository as a whole: layers, light imports, one place for each fact, sizes"
import ast, base64, json, re, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
import pytest, yaml
try: import tomllib
except ImportError: import tomli as tomllib # Python 3.10; nbdev brings it

root = Path(__file__).resolve().parent.parent
notebooks = sorted(p for p in (root/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts)
files = sorted(p for p in (root/'vision_ft').rglob('*.py') if not p.name.startswith('_'))
each_notebook = pytest.mark.parametrize('nb', notebooks, ids=lambda p: p.stem)
each_module = pytest.mark.parametrize('file', files, ids=lambda p: p.stem)

def module(file): return '.'.join(file.relative_to(root).with_suffix('').parts)
def cells(nb, kind): return [c for c in json.loads(nb.read_text(encoding='utf-8'))['cells'] if c['cell_type'] == kind]
def run(*args, **kw): return subprocess.run(args, cwd=root, capture_output=True, text=True, **kw)

# --- layers

def layer(file): return int(re.search(r'File to edit: \S*/(\d+)_\w+\.ipynb', file.read_text(encoding='utf-8'))[1])

def imports(file):
    "Modules of vision_ft that `file` imports anywhere, also inside functions"
    package = module(file).split('.')[:-1]
    for n in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
        if isinstance(n, ast.Import): names = [a.name for a in n.names]
        elif isinstance(n, ast.ImportFrom):
            base = '.'.join([*package[:len(package)+1-n.level], *([n.module] if n.module else [])] if n.level else [n.module])
            names = [base, *(f'{base}.{a.name}' for a in n.names)]
        else: continue
        yield from (o for o in names if o in layers)

layers = {module(f): layer(f) for f in files}

@each_module
def test_imports_go_up_the_list_only(file):
    me, wings = module(file), {'classify', 'detect', 'segment'}
    for dep in imports(file):
        a, b = me.split('.')[1], dep.split('.')[1]
        assert layers[dep] < layers[me], f'{me} ({layers[me]}) imports {dep} ({layers[dep]}), which is not below it'
        assert not (a != b and {a, b} <= wings), f'{me} imports {dep}: the wings never import each other'

def test_one_number_one_chapter():
    numbered = [p for p in notebooks if re.match(r'\d', p.name)]
    assert len({p.name.split('_')[0] for p in numbered}) == len(numbered)

# --- light imports

heavy = ('torch', 'torchvision', 'fastai', 'timm', 'pandas', 'sklearn')

@pytest.mark.parametrize('name', ['vision_ft', 'vision_ft.core'])
def test_import_is_light(name):
    got = run(sys.executable, '-c', f'import sys, {name}; print([o for o in {heavy} if o in sys.modules])', check=True)
    assert got.stdout.strip() == '[]', f'import {name} brings {got.stdout}'

def test_import_is_fast():
    def once():
        out = run(sys.executable, '-X', 'importtime', '-c', 'import vision_ft', check=True).stderr
        names = {l.rsplit('|', 1)[1].strip().split('.')[0]: int(l.split('|')[1]) for l in out.splitlines() if re.match(r'import time:\s+\d', l)}
        assert not names.keys() & {'torch', 'fastai'}
        return names['vision_ft']/1e6 # seconds, with all that it imports
    assert min(once() for _ in range(3)) < .3

# --- one place for each fact

def test_facts_stand_once():
    ini, toml = ConfigParser(delimiters=['=']), tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))
    ini.read(root/'settings.ini', encoding='utf-8')
    as_field = dict(author='authors', requirements='dependencies', python_classifiers='classifiers')
    facts = {as_field.get(k, k) for k in ini['DEFAULT']} | {'optional-dependencies', 'version', 'readme'}
    assert facts == set(toml['project']['dynamic'])
    assert not facts & set(toml['project']), 'pyproject.toml repeats what settings.ini says'
    assert set(ini['DEFAULT']) & {'name', 'version', 'requires-python'} == set()

def test_pythons_agree():
    ini, toml = ConfigParser(delimiters=['=']), tomllib.loads((root/'pyproject.toml').read_text(encoding='utf-8'))
    ini.read(root/'settings.ini', encoding='utf-8')
    pythons = ini['DEFAULT']['python_classifiers'].split()
    jobs = yaml.safe_load((root/'.github/workflows/test.yml').read_text())['jobs']
    low, high = re.findall(r'3\.(\d+)', toml['project']['requires-python'])
    assert pythons == [f'3.{i}' for i in range(int(low), int(high))]
    assert jobs['test']['strategy']['matrix']['python'] == [pythons[0], pythons[-1]]
    assert f'(3,{low}) <= sys.version_info < (3,{high})' in (root/'Makefile').read_text()

@pytest.mark.parametrize('name', ['test', 'gpu', 'docs'])
def test_workflow_parses(name):
    flow = yaml.safe_load((root/f'.github/workflows/{name}.yml').read_text())
    assert flow['jobs'] and flow.get('on', flow.get(True)) # YAML 1.1 reads a bare `on` as true
    used = [s['uses'] for j in flow['jobs'].values() for s in j['steps'] if 'uses' in s]
    assert all(re.search(r'@v\d+$', u) for u in used), used

# --- notebooks

@each_notebook
def test_chapter_opens_with_title_and_summary(nb):
    first = ''.join(cells(nb, 'markdown')[0]['source'])
    assert re.match(r'# .+\n\n> .+', first), f'{nb.name} opens with {first[:60]!r}; wanted: an H1, then a > summary'

@each_notebook
def test_stored_outputs(nb):
    assert nb.stat().st_size < 500_000, f'{nb.name} has {nb.stat().st_size//1000} kB; 500 kB is the limit'
    for c in cells(nb, 'code'):
        for o in c['outputs']:
            assert o['output_type'] != 'error', f'{nb.name} stores the error {o.get("ename")}'
            text = json.dumps(o)
            assert not re.search(r'/(home|root|Users)/\w|(site|dist)-packages/', text) and str(root) not in text, f'{nb.name} stores a path of the machine that ran it: {text[:200]}'
            for k, v in o.get('data', {}).items():
                assert 'widget' not in k, f'{nb.name} stores a widget, which is dead without its kernel: run that cell without a progress bar'
                v = ''.join(v) if isinstance(v, list) else v
                size = len(base64.b64decode(v)) if k in ('image/png', 'image/jpeg') else len(v) if k.startswith('image') else 0
                assert size < 100_000, f'{nb.name} has a figure of {size//1000} kB; 100 kB is the limit: fewer pixels (figsize, dpi)'

# --- the library

@each_module
def test_exports(file):
    tree = ast.parse(file.read_text(encoding='utf-8'))
    for n in ast.walk(tree):
        assert not (isinstance(n, ast.ImportFrom) and any(a.name == '*' for a in n.names)), f'{file.name} says from {n.module} import *'
    public = [n for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not n.name.startswith('_')]
    assert not (bare := [n.name for n in public if not ast.get_docstring(n)]), f'{file.name}: no docstring in {bare}'

# --- the checkout

def test_in_step_checks_see_changes(root, tmp_path):
    "The checks that `make test` runs first catch a hand-made edit of each of the three"
    import shutil
    shutil.copytree(root, tmp_path/'r', ignore=shutil.ignore_patterns('.venv', '.git', '_docs', 'demo', 'runs', 'build', '*.egg-info'))
    r = tmp_path/'r'
    check = lambda f, *a: subprocess.run([sys.executable, r/'.ci'/f, *a], capture_output=True, text=True)
    assert check('instep.py').returncode == 0 and check('readme.py', '--check').returncode == 0
    for file, script, fix in (('vision_ft/core.py', ['instep.py'], 'nbdev-export'), ('README.md', ['readme.py', '--check'], 'readme.py')):
        with open(r/file, 'a') as f: f.write('\n# changed by hand\n')
        got = check(*script)
        assert got.returncode == 1 and fix in got.stderr and len(got.stderr.splitlines()) == 1
    (r/'vision_ft/orphan.py').write_text('x = 1\n')
    assert 'orphan.py' in check('instep.py').stderr
    nb = json.loads((r/'nbs/00_core.ipynb').read_text(encoding='utf-8'))
    next(c for c in nb['cells'] if c['cell_type'] == 'code')['execution_count'] = 7
    (r/'nbs/00_core.ipynb').write_text(json.dumps(nb), encoding='utf-8')
    assert 'nbdev-clean' in check('instep.py').stderr

def test_site(root, tmp_path):
    "Every chapter becomes a page, no page needs the network, every link leads somewhere"
    subprocess.run([sys.executable, root/'.ci/docs.py', tmp_path/'site'], check=True, capture_output=True)
    pages = list((tmp_path/'site').rglob('*.html'))
    assert len([p for p in pages if 'files' not in p.relative_to(tmp_path).parts]) == len(notebooks)+1
    for p in pages:
        html = p.read_text(encoding='utf-8')
        assert '<script' not in html and not re.search(r'(src|<link[^>]*href)="(https?:)?//', html), p.name
        for link in re.findall(r'(?:href|src)="(?![a-z]+:|#)([^"#]+)', html): assert (p.parent/link).exists(), f'{p.name} links to {link}'

def test_files_in_git_are_small(root):
    got = run('git', 'ls-files', '-z')
    if got.returncode: pytest.skip('not a git checkout')
    big = [f for f in got.stdout.split('\0') if f and (root/f).exists() and (root/f).stat().st_size > 8*2**20]
    assert not big, f'more than 8 MiB: {big}'
