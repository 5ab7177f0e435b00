"""What is put where a perturbation removes something: one operator a file in `medxai.explain.masking.operators`.

A mask is ``[N, *S]``, 1 where the image is kept and 0 where it is removed. `Masker` is what methods use.
"""
