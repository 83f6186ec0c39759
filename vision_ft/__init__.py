"Fine-tune vision models exactly, within memory, offline: what is used most, by name, each loaded when it is first asked for"
__version__ = "0.1.0"

import warnings

_home = dict( # name → module that defines it; the chapters tell the rest
    compete='classify.compete', train='classify.train', TrainSettings='classify.settings',
    tta='classify.tta', predict='classify.predict', load_run='classify.predict', plan='classify.plan',
    read_competition='classify.kaggle', make_split='data.splits', split_rows='data.splits',
    digits='samples', Preds='core', ensemble='blend', compare_preds='stats',
    GradAccum='accum', predict_memory='planning')
__all__ = list(_home)

# On a recent torch, fastai says this to whoever imports it. The one filter of the package, by its exact words.
warnings.filterwarnings('ignore', '`torch.jit.script` is deprecated', FutureWarning)

def _modules():
    "Names of the modules and wings of this package"
    from pkgutil import iter_modules
    return [m.name for m in iter_modules(__path__) if not m.name.startswith('_')]

def _fix(name):
    "Where a name is that isn't here, or what it resembles"
    from difflib import get_close_matches
    from vision_ft._modidx import d
    homes = [m for m, symbols in d['syms'].items() if f'{m}.{name}' in symbols]
    if homes: return f'from {homes[0]} import {name}'
    near = get_close_matches(name, [*_home, *_modules()], n=1)
    return f'vision_ft.{near[0]}' if near else f'one of {", ".join(_home)}'

def __getattr__(name):
    "A name of `__all__` or a module, imported now; so `import vision_ft` brings neither torch nor fastai"
    from importlib import import_module
    if name in _home: return getattr(import_module(f'vision_ft.{_home[name]}'), name)
    hidden = name.startswith('_')
    if not hidden and name in _modules(): return import_module(f'vision_ft.{name}')
    raise AttributeError(f"vision_ft has no {name!r}." + ('' if hidden else f' Fix: {_fix(name)}.'))

def __dir__(): return [*__all__, *_modules(), '__version__']
