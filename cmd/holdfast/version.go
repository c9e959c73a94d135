package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"holdfast/election"
	"holdfast/pgwire"
)

// version is set by the linker (see Makefile); a plain go build leaves it empty.
var version string

// clientProtocols are the PostgreSQL protocol versions that the proxy speaks to clients.
func clientProtocols() string {
	text := func(v uint32) string { return fmt.Sprintf("%d.%d", v>>16, v&0xffff) }
	return text(pgwire.Protocol3) + " to " + text(pgwire.Protocol32)
}

// VersionInfo is what `holdfast version` prints.
type VersionInfo struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	// NodeProtocol is the version of log entries, snapshots and RPCs between nodes; nodes of
	// neighbouring releases may differ in it by one.
	NodeProtocol int `json:"node_protocol"`
	// ClientProtocol tells the oldest and the newest PostgreSQL protocol that clients may ask for.
	ClientProtocol string `json:"client_protocol"`
	Platform       string `json:"platform"`
}

// Version is the subcommand that tells what this binary is.
type Version struct {
	// JSON prints one JSON object and not text.
	JSON bool
	Out  io.Writer
}

// Run prints the version.
func (c Version) Run(context.Context) error {
	info := versionInfo()
	if c.JSON {
		if err := json.NewEncoder(c.Out).Encode(info); err != nil {
			return fmt.Errorf("print version: %w", err)
		}
		return nil
	}
	_, err := fmt.Fprintf(c.Out,
		"holdfast %s (%s, %s)\nnode protocol %d, client protocol %s\n",
		info.Version, info.Go, info.Platform, info.NodeProtocol, info.ClientProtocol)
	if err != nil {
		return fmt.Errorf("print version: %w", err)
	}
	return nil
}

func versionInfo() VersionInfo {
	return VersionInfo{
		Version:        buildVersion(),
		Go:             runtime.Version(),
		NodeProtocol:   election.Version,
		ClientProtocol: clientProtocols(),
		Platform:       runtime.GOOS + "/" + runtime.GOARCH,
	}
}

// buildVersion is the linker's version, else what the module system knows.
func buildVersion() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "unreleased"
}

func newVersionCommand() *cobra.Command {
	c := Version{}
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version and the protocol versions",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.Out = cmd.OutOrStdout()
			return c.Run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&c.JSON, "json", false, "print JSON")
	return cmd
}
