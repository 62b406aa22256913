//! Linker settings of the binary.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A position-independent program of this size has more than 20,000 relative relocations. Each
    // process reads the whole table when it starts, and so half a MiB of it stays resident in every
    // agent and relay. Packed (DT_RELR, glibc from 2.36 on) it has 2 % of the size. The lld
    // that comes with the toolchain packs it as glibc demands; mold 1.10 leaves out the version
    // mark, and glibc refuses to start such a program.
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    if is("TARGET", "x86_64-unknown-linux-gnu") && is("PROFILE", "release") {
        println!("cargo::rustc-link-arg-bins=-fuse-ld=lld");
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
