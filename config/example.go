package config

import _ "embed"

//go:embed example.yaml
var example []byte

// Example returns a commented configuration that holds every key with its default.
func Example() []byte { return append([]byte(nil), example...) }
