//! Prints the interface as a C header.

fn main() {
    let mut text = String::new();
    abi::c_header(&mut text).expect("a String takes all that is written");
    print!("{text}");
}
