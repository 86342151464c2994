//! Registries: what is pushed and pulled, with Debian's docker-registry on the loopback and images made by umoci.

mod cache;
mod daemon;
mod faults;
mod faulty;
mod hostile;
mod pull;
mod push;
pub mod real;
