//! Launch plans as values and as text.
