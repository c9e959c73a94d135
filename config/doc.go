// Package config holds the configuration as one tree, loads it and checks it.
//
// It promises that a configuration which loads is one that can run: an unknown key, a value of the
// wrong kind, and values that contradict each other are refused, all of them at once, each with
// file, line, key and what is allowed. Nothing is guessed and nothing is silently ignored.
//
// The defaults belong to the packages that use them (proxy.DefaultConfig and those of election);
// this package composes them into the tree, and hands each part its own configuration. A value
// comes from, in this order: the environment variable of its key, the file, the default.
//
// Two passes read the file. The first walks the YAML nodes beside a schema that reflection makes
// from the tree: it knows lines, so it finds the mistakes. The second is viper's, which merges
// file, environment and defaults, and decodes exactly. The first pass is the stricter one; were it
// to let something through, the second would still refuse it, only without a line.
//
// What this package does not do: of the files that the configuration names it opens only the one
// with the look-up password, and not before ProxyConfig is called; and it does not watch for
// changes.
package config
