//! The addon that a warm Node.js loads, for what JavaScript has no word for: `keep()` makes the
//! [keeper](native::keeper) of its memory, and `exit()` ends it at once, as a success. Node.js itself takes itself apart
//! first, joins its threads, and gives back its memory, which together takes longer than a small function.
//!
//! It needs two functions of Node-API, which are where the interpreter is.
//! See <https://nodejs.org/api/n-api.html>.

#![no_std]
#![no_builtins]
#![allow(dead_code, reason = "the executor uses all of it, this addon little")]

mod bare;
#[path = "mod.rs"]
mod native;

use core::{
    ffi::{CStr, c_char, c_void},
    ptr,
};

use native::{keeper, sys};

type Env = *mut c_void;
type Value = *mut c_void;
type CallInfo = *mut c_void;
type Callback = extern "C" fn(Env, CallInfo) -> Value;

unsafe extern "C" {
    fn napi_create_function(
        env: Env,
        name: *const c_char,
        length: usize,
        callback: Callback,
        data: *mut c_void,
        function: *mut Value,
    ) -> i32;
    fn napi_set_named_property(env: Env, object: Value, name: *const c_char, value: Value) -> i32;
}

/// Called by Node.js when it loads this: gives the exports their functions.
#[unsafe(no_mangle)]
pub extern "C" fn napi_register_module_v1(env: Env, exports: Value) -> Value {
    export(env, exports, c"keep", keep);
    export(env, exports, c"exit", exit);
    exports
}

/// What cannot be made is not there, which whoever looks for it finds.
fn export(env: Env, exports: Value, name: &'static CStr, callback: Callback) {
    let mut function = ptr::null_mut();
    // SAFETY: the environment and the object are Node's, for this call, and the name has a NUL.
    unsafe {
        if napi_create_function(env, name.as_ptr(), name.count_bytes(), callback, ptr::null_mut(), &mut function)
            == 0
        {
            napi_set_named_property(env, exports, name.as_ptr(), function);
        }
    }
}

/// Makes the keeper. Called on the first thread, once; where there may be no other process there is none.
extern "C" fn keep(_: Env, _: CallInfo) -> Value {
    if sys::block_signals(true).is_ok() {
        let _ = keeper::employ();
        let _ = sys::block_signals(false);
    }
    ptr::null_mut()
}

/// Ends the process with all its threads.
extern "C" fn exit(_: Env, _: CallInfo) -> Value {
    sys::exit(0)
}
