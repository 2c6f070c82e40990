//! Prints the definitions of the custom resources, one JSON document per line (`kubectl apply -f -` takes
//! them): `cargo run --example crds`.

fn main() -> Result<(), serde_json::Error> {
    for definition in pointsman::discovery::kubernetes::crds::all() {
        println!("{}", serde_json::to_string(&definition)?);
    }
    Ok(())
}
