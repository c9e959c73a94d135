// Command holdfast keeps PostgreSQL sessions alive while the primary changes.
//
// Each subcommand is a struct with exported configuration fields and a Run method, so that tests
// can run several of them in one process. Only main calls os.Exit. No package but this one and
// bench reads the configuration; wire.go hands each part its own.
package main
