//! A POSIX shell interpreter: evaluates environment scripts, and runs scripts where an image has no shell.
