"Build the site's pages without quarto: proves that export and import cells run, show_doc renders and directives resolve."
import shutil
from pathlib import Path

if __name__ == '__main__':                       # nbdev's workers spawn
    from nbdev.config import get_config
    from nbdev.doclinks import _build_modidx
    from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
    from nbdev.serve import proc_nbs
    cfg = get_config(); refresh_quarto_yml(); _build_modidx(); nbdev_sidebar.__wrapped__(path=cfg.nbs_path)
    shutil.rmtree(cfg.config_path/'_proc', ignore_errors=True); proc_nbs(cfg.nbs_path, n_workers=0, force=True)
    pages = sorted(Path(cfg.config_path/'_proc').rglob('*.ipynb')); made = {p.stem for p in pages}
    want = {p.stem for p in Path(cfg.nbs_path).glob('*.ipynb')}
    assert want <= made, f'not built: {sorted(want - made)}'
    left = [p.name for p in pages if '#| export' in p.read_text()]; assert not left, f'directives left in {left}'
    print(len(pages), 'pages')
