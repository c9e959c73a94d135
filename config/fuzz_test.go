package config_test

import (
	"errors"
	"testing"

	"holdfast/config"
)

// FuzzParse holds Parse to its promise: no panic, every refusal is Problems, and what is accepted
// can be printed and read back to the same tree.
func FuzzParse(f *testing.F) {
	f.Add(config.Example())
	f.Add([]byte(group))
	f.Add([]byte("proxy: {listen: [a, b], hold_timeout: 1h2m3s4ms}\nlog: {level: warn}\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Add([]byte("name: !!binary aGk=\n"))
	f.Add([]byte("? {a: b}\n: c\n"))
	f.Add([]byte("name: \"\\u0085\"\n"))
	f.Add([]byte("proxy: {<<: {listen: [x]}}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := config.Parse("fuzz.yaml", data)
		if err != nil {
			var problems config.Problems
			if !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("error is %T: %v", err, err)
			}
			return
		}
		again, err := config.Parse("again.yaml", cfg.YAML())
		if err != nil {
			t.Fatalf("printed tree is refused: %v\n%s", err, cfg.YAML())
		}
		if string(again.YAML()) != string(cfg.YAML()) {
			t.Fatalf("got\n%s\nwant\n%s", again.YAML(), cfg.YAML())
		}
	})
}
