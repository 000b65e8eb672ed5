//! Operator commands: dead letters, the doctor, and the operations manual.

mod dead_letters;
mod doctor;
mod manual;
