//! Packs directories into images.
