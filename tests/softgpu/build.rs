//! Gives the cdylib the soname the CUDA driver is looked up by, so that once it is loaded a later
//! `dlopen("libcuda.so")` in the same process finds it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libcuda.so");
}
