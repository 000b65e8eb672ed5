//! What operators do: dead letters, the doctor, the manual.

mod doctor;
mod letters;
mod manual;
