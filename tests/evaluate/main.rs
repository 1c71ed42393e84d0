//! Scores of samples against closed forms, against numpy, scipy and scikit-learn,
//! and at their edges.

mod scores;
