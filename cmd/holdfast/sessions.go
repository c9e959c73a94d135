package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"holdfast/proxy"
)

// sessionsAnswer is the answer to GET /v1/sessions.
type sessionsAnswer struct {
	Sessions []proxy.SessionInfo `json:"sessions"`
}

// handleSessions adds the list of the sessions of this node's proxy.
func handleSessions(mux *http.ServeMux, c controller) {
	mux.HandleFunc("GET /v1/sessions", func(w http.ResponseWriter, _ *http.Request) {
		writeHTTPJSON(w, http.StatusOK, sessionsAnswer{Sessions: c.Sessions()})
	})
}

// SessionsCommand is the subcommand that lists the sessions of a node's proxy, and tells of each
// whether it would survive a change of primary now.
type SessionsCommand struct {
	// URL is the node's HTTP interface.
	URL string
	// Lost shows only those that would not survive.
	Lost bool
	JSON bool
	Out  io.Writer
}

// Run asks the node and prints what it says.
func (c SessionsCommand) Run(ctx context.Context) error {
	var a sessionsAnswer
	if err := callHTTP(ctx, http.MethodGet, c.URL+"/v1/sessions", nil, &a); err != nil {
		return err
	}
	if c.Lost {
		a.Sessions = slices.DeleteFunc(a.Sessions, func(s proxy.SessionInfo) bool {
			return s.Survives
		})
	}
	if c.JSON {
		return writeJSON(c.Out, a)
	}
	return a.print(c.Out)
}

func (a *sessionsAnswer) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tUSER\tDATABASE\tCLIENT\tSTATE\tEPOCH\tHOLD\tSURVIVES\tWHY NOT")
	for i := range a.Sessions {
		s := &a.Sessions[i]
		survives, why := "yes", s.Why
		switch {
		case s.Planned:
			survives = "planned only"
		case !s.Survives:
			survives = "no"
		}
		if s.Statement != "" {
			why += ": " + strconv.Quote(s.Statement)
		}
		if s.Unprotected != "" {
			why = "commits are unprotected (synchronous_commit " + s.Unprotected + ")" + and(why)
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", s.ID, s.User, s.Database,
			s.Client, s.State, s.Epoch, s.Hold, survives, why)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print sessions: %w", err)
	}
	return nil
}

func and(why string) string {
	if why == "" {
		return ""
	}
	return "; " + why
}

func newSessionsCommand() *cobra.Command {
	c := SessionsCommand{}
	cmd := &cobra.Command{
		Use:   "sessions",
		Short: "List the sessions of a node's proxy, and whether each survives a change of primary",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c.Out = cmd.OutOrStdout()
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			return c.Run(ctx)
		},
	}
	cmd.Flags().StringVar(&c.URL, "url", defaultURL, "the HTTP interface of the node")
	cmd.Flags().BoolVar(&c.Lost, "lost", false, "only those that would not survive")
	cmd.Flags().BoolVar(&c.JSON, "json", false, "print JSON")
	return cmd
}
