"The wheel, built from what git would commit and installed away from the checkout, is a whole vision_ft"
import json, os, shutil, subprocess, sys
from email.parser import HeaderParser
from pathlib import Path
import pytest

def sh(*args, **kw):
    "Run to the end; what it said is in the error if it failed"
    got = subprocess.run([str(a) for a in args], capture_output=True, text=True, **kw)
    assert got.returncode == 0, f'{" ".join(map(str, args))}\n{got.stdout[-3000:]}\n{got.stderr[-3000:]}'
    return got.stdout

@pytest.fixture(scope='module')
def wheel(root, tmp_path_factory):
    "Built from a copy of the files that git knows or would add, so nothing left over in the checkout can help"
    src, out = tmp_path_factory.mktemp('src'), tmp_path_factory.mktemp('dist')
    try: files = sh('git', 'ls-files', '-co', '--exclude-standard', '-z', cwd=root).split('\0')
    except (AssertionError, FileNotFoundError): pytest.skip('not a git checkout')
    for f in filter(None, files):
        if (root/f).is_file(): (src/f).parent.mkdir(parents=True, exist_ok=True); shutil.copy(root/f, src/f)
    sh(sys.executable, '-m', 'build', '--no-isolation', '--outdir', out, src) # the sdist, and from that the wheel
    return next(out.glob('*.whl'))

@pytest.fixture(scope='module')
def venv(wheel, tmp_path_factory):
    """An environment of its own with the wheel in it. torch and the others come last on its path, from the environment that runs the tests:
    as a plain path, so that no .pth file there is read, and with it no editable install of vision_ft."""
    home = tmp_path_factory.mktemp('venv')
    sh(sys.executable, '-m', 'venv', '--without-pip', home)
    sh(sys.executable, '-m', 'pip', '--python', home/'bin/python', 'install', '-q', '--no-deps', '--no-index', wheel)
    site = Path(sh(home/'bin/python', '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip())
    (site/'parent.pth').write_text('\n'.join(p for p in sys.path if Path(p).name in ('site-packages', 'dist-packages')))
    return home

@pytest.fixture(scope='module')
def away(tmp_path_factory): return tmp_path_factory.mktemp('away')

@pytest.fixture(scope='module')
def env():
    "Without PYTHONPATH, offline; one thread, since two on two busy cores spend their time waiting for each other"
    return {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')} | dict(HF_HUB_OFFLINE='1', MPLBACKEND='Agg', OMP_NUM_THREADS='1', CI='true')

def test_metadata(wheel):
    import zipfile
    with zipfile.ZipFile(wheel) as z:
        names = z.namelist()
        meta = HeaderParser().parsestr(z.read(next(n for n in names if n.endswith('.dist-info/METADATA'))).decode())
    assert not [n for n in names if '__pycache__' in n or n.startswith(('nbs/', 'tests/', 'data/'))]
    assert any(n.endswith('licenses/LICENSE') for n in names) and meta['License-Expression'] == 'Apache-2.0'
    assert {o.strip() for o in meta['Requires-Python'].split(',')} == {'>=3.10', '<3.14'}
    assert {f'Programming Language :: Python :: 3.{i}' for i in (10, 11, 12, 13)} <= set(meta.get_all('Classifier'))
    assert {'kaggle', 'dev', 'all'} <= set(meta.get_all('Provides-Extra'))
    core = {r for r in meta.get_all('Requires-Dist') if 'extra ==' not in r}
    assert {'torch', 'fastai', 'timm'} <= {r.split('>')[0] for r in core}
    foreign = 'ultralytics transformers supervision monai segmentation onnx fastapi uvicorn litserve ray mlflow kaggle'.split()
    assert not [r for r in core if r.lower().startswith(tuple(foreign))], 'a core install has only what chapters 00-24 need'
    assert len(meta.get_payload()) > 200, 'the README is the long description'

def test_import_and_assets(venv, away, env, root):
    code = '''
import json, vision_ft, vision_ft.core as core
from importlib.metadata import version
from importlib.resources import files
walk = lambda d: [o for c in d.iterdir() for o in (walk(c) if c.is_dir() else [c])]
print(json.dumps(dict(file=vision_ft.__file__, version=[version('vision_ft'), vision_ft.__version__], asset=str(core.asset('README.md')),
                      assets=[o.name for o in walk(files('vision_ft.assets'))])))'''
    got = json.loads(sh(venv/'bin/python', '-c', code, cwd=away, env=env))
    assert Path(got['file']).is_relative_to(venv) and Path(got['asset']).is_relative_to(venv)
    assert got['version'][0] == got['version'][1]
    ours = sh('git', 'ls-files', '-co', '--exclude-standard', 'data', cwd=root).split()
    assert {Path(o).name for o in ours} == {o for o in got['assets'] if not o.endswith('.pyc')}
    assert {'tiny.csv', 'paddy.csv'} <= set(got['assets'])

def test_command_line_helps(venv, away, env):
    said = sh(venv/'bin/vision-ft', '--help', cwd=away, env=env)
    assert 'compete' in said and 'demo' in said

def test_demo(venv, away, env):
    "The job of `make demo`, one epoch a model, with nothing of the checkout in reach"
    sh(venv/'bin/vision-ft', 'demo', '--epochs', '1', '--out', away/'out', cwd=away, env=env)
    made = {p.name: p for p in (away/'out').rglob('*')}
    assert {'submission.csv', 'runs.csv', 'report.html'} <= made.keys()
    assert len(made['submission.csv'].read_text().splitlines()) == 360+1 # the digits' test images and a header
