//! Every `unsafe` block of the repository, behind safe functions.
#![allow(unsafe_code)]
