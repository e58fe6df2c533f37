"""The shipped configs, for ``_base_ = ['mmkd::…']``; ``.mim/configs`` is the folder ``configs/``.

mmengine looks below the *installed distribution* of a package for its configs,
which an editable installation does not have. It falls back to the module where
there is no distribution of that name, as there is none of this subpackage.
"""
