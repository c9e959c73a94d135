package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"holdfast/election"
)

// The bodies of the requests that change the members. In each, DryRun asks for the preconditions
// only.
type (
	// memberAddRequest is the body of POST /v1/member/add. The node itself tells the rest.
	memberAddRequest struct {
		Name    string `json:"name"`
		Address string `json:"address"`
		DryRun  bool   `json:"dry_run"`
	}
	// memberRemoveRequest is the body of POST /v1/member/remove.
	memberRemoveRequest struct {
		Name                string `json:"name"`
		AcceptFewerStandbys bool   `json:"accept_fewer_standbys"`
		DryRun              bool   `json:"dry_run"`
	}
	// memberReplaceRequest is the body of POST /v1/member/replace.
	memberReplaceRequest struct {
		Old     string `json:"old"`
		Name    string `json:"name"`
		Address string `json:"address"`
		DryRun  bool   `json:"dry_run"`
	}
)

// handleMembers adds the requests that change the members.
func handleMembers(mux *http.ServeMux, c controller) {
	mux.HandleFunc("POST /v1/member/add", changeMembers(c,
		func(r memberAddRequest) election.MemberRequest {
			return memberAdd("", r.Name, r.Address, r.DryRun)
		}))
	mux.HandleFunc("POST /v1/member/replace", changeMembers(c,
		func(r memberReplaceRequest) election.MemberRequest {
			return memberAdd(r.Old, r.Name, r.Address, r.DryRun)
		}))
	mux.HandleFunc("POST /v1/member/remove", changeMembers(c,
		func(r memberRemoveRequest) election.MemberRequest {
			return election.MemberRequest{
				Change: election.MemberChange{
					Kind: election.MemberRemove, Member: election.Member{Name: r.Name},
				},
				DryRun: r.DryRun, AcceptFewer: r.AcceptFewerStandbys,
			}
		}))
}

func memberAdd(old, name, address string, dryRun bool) election.MemberRequest {
	return election.MemberRequest{DryRun: dryRun, Change: election.MemberChange{
		Kind: election.MemberAdd, Replaces: old,
		Member: election.Member{Name: name, Address: address},
	}}
}

// changeMembers is the handler of one kind of change.
func changeMembers[T any](c controller, request func(T) election.MemberRequest) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, ok := readHTTPJSON[T](w, r)
		if !ok {
			return
		}
		req := request(body)
		checks, err := c.ChangeMember(r.Context(), req)
		answerRequest(c, w, r, req.DryRun, checks, err)
	}
}

// VotersStatus is who votes on leases, and the change of the members that is under way.
type VotersStatus struct {
	// Version counts the changes of the set.
	Version uint64   `json:"version"`
	Names   []string `json:"names"`
	// Change says which change of the members is under way; empty if none.
	Change string `json:"change,omitempty"`
	// Recovered counts the recoveries from a lost quorum.
	Recovered uint64 `json:"recovered,omitempty"`
}

// votersStatus describes the voters of a state.
func votersStatus(s *election.State) *VotersStatus {
	if len(s.Members) == 0 {
		return nil
	}
	out := &VotersStatus{Recovered: s.Recovered, Change: s.MemberChangeText()}
	out.Version, out.Names = s.VoterNames()
	return out
}

// MembersCommand is the subcommand that lists the members.
type MembersCommand struct {
	// URL is any node's HTTP interface.
	URL  string
	JSON bool
	Out  io.Writer
}

// Run asks the node and prints what it says.
func (c MembersCommand) Run(ctx context.Context) error {
	var st Status
	if err := callHTTP(ctx, http.MethodGet, c.URL+"/v1/status", nil, &st); err != nil {
		return err
	}
	if c.JSON {
		return writeJSON(c.Out, struct {
			Voters  *VotersStatus  `json:"voters"`
			Members []MemberStatus `json:"members"`
		}{st.Voters, st.Members})
	}
	return st.printMembers(c.Out)
}

// printMembers writes the members with their addresses and votes.
func (s *Status) printMembers(out io.Writer) error {
	w := tabwriter.NewWriter(out, 2, 0, 2, ' ', 0)
	fmt.Fprintln(w, "MEMBER\tADDRESS\tPOSTGRES\tROLE\tVOTES")
	for _, m := range s.Members {
		votes := "no"
		if m.Voter {
			votes = "yes"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", m.Name, m.Address, orDash(m.Postgres), m.Role, votes)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print members: %w", err)
	}
	if v := s.Voters; v != nil && v.Change != "" {
		fmt.Fprintln(out, v.Change)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(out, "problem: %s\n", p)
	}
	return nil
}

func newMembersCommand() *cobra.Command {
	c := MembersCommand{}
	cmd := &cobra.Command{
		Use:   "members",
		Short: "List the members, their addresses and who votes",
		Args:  cobra.NoArgs,
	}
	runOperation(cmd, &c.URL, nil, func(ctx context.Context, out io.Writer, _ []string) error {
		c.Out = out
		return c.Run(ctx)
	})
	cmd.Flags().BoolVar(&c.JSON, "json", false, "print JSON")
	return cmd
}

func newMemberCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "member",
		Short: "Add, remove or replace a node of the group while it runs",
	}
	needCommand(cmd)
	cmd.AddCommand(
		newMemberChange("add NAME ADDRESS", "Add a node that runs and is not in the group yet", 2,
			func(a []string, r memberFlags) any { return memberAddRequest{a[0], a[1], r.dryRun} }),
		newMemberChange("remove NAME", "Remove a node, also one that is lost", 1,
			func(a []string, r memberFlags) any {
				return memberRemoveRequest{a[0], r.acceptFewer, r.dryRun}
			}),
		newMemberChange("replace OLD NEW ADDRESS", "Add a node, then remove another", 3,
			func(a []string, r memberFlags) any {
				return memberReplaceRequest{a[0], a[1], a[2], r.dryRun}
			}))
	return cmd
}

// memberFlags are the flags of the changes.
type memberFlags struct {
	url                 string
	dryRun, acceptFewer bool
}

func newMemberChange(use, short string, args int, body func([]string, memberFlags) any,
) *cobra.Command {
	var r memberFlags
	cmd := &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(args)}
	runOperation(cmd, &r.url, &r.dryRun, func(ctx context.Context, out io.Writer, a []string) error {
		kind, _, _ := strings.Cut(use, " ")
		o := operation{name: "member/" + kind, url: r.url, out: out, dryRun: r.dryRun}
		st, err := o.run(ctx, body(a, r))
		if err != nil || st == nil {
			return err
		}
		return st.printMembers(out)
	})
	if args == 1 {
		cmd.Flags().BoolVar(&r.acceptFewer, "accept-fewer-standbys", false,
			"remove it though commits then wait for fewer standbys than they should")
	}
	return cmd
}
