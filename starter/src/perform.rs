//! Performs a launch plan.
