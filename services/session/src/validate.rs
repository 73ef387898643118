//! From a request to values that cannot be wrong: every limit of the contract is checked here, all of a
//! request at once, and nowhere below.

mod check;
mod dependency;
mod execution;
mod file;
mod session;

pub(crate) use self::{
    dependency::{dependencies, template_package},
    execution::{NewExecution, new_execution},
    file::{FilePath, NewFile, new_file},
    session::{NewSession, check_resources, new_session, packages_to_install},
};

#[cfg(test)]
mod tests;
