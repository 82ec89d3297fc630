//! Apart from the other tests, because which compiler there is is found out once a process.

use swara_kernels::{Device, Error};

#[test]
fn without_a_compiler_the_emulator_says_what_to_do() {
    // SAFETY: the only test of this process.
    unsafe { std::env::set_var("SWARA_CXX", "/nonexistent/c++") };
    let error = Device::open("emulator").unwrap_err();
    let Error::Unavailable { why, hint, .. } = &error else { panic!("{error:?}") };
    assert!(why.contains("SWARA_CXX is /nonexistent/c++"), "{why}");
    assert!(hint.as_deref().is_some_and(|h| h.contains("g++")), "{hint:?}");
}
