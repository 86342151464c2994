//! Site configuration: `sifu.conf` and the library lists.
