"Reads settings.ini, the one place for what the package is, and hands it to setuptools."
from configparser import ConfigParser
from pathlib import Path
from setuptools import find_packages, setup

here = Path(__file__).parent
cfg = ConfigParser(delimiters=['='])
cfg.read(here/'settings.ini', encoding='utf-8')
facts = cfg['DEFAULT']
extras = {k: v.split() for k, v in cfg['extras'].items() if k not in facts}
extras['all'] = sorted({r for k, v in extras.items() if k != 'dev' for r in v})

setup(
    description=facts['description'], keywords=facts['keywords'].split(), author=facts['author'], license_expression=facts['license'],
    long_description=(here/'README.md').read_text(encoding='utf-8'), long_description_content_type='text/markdown',
    classifiers=['Programming Language :: Python :: 3'] + [f'Programming Language :: Python :: {v}' for v in facts['python_classifiers'].split()],
    install_requires=facts['requirements'].split(), extras_require=extras,
    # data/ stands at the top of the repository and travels in the wheel as the package vision_ft.assets
    packages=find_packages(include=['vision_ft', 'vision_ft.*']) + ['vision_ft.assets'],
    package_dir={'vision_ft.assets': 'data'}, include_package_data=False,
    package_data={'vision_ft.assets': ['**/*']}, exclude_package_data={'vision_ft.assets': ['*.pyc']})
