package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
)

// runCheck is for monitoring that runs commands: it fails, with the reasons, if there is anything
// that someone should look at, or no primary that clients can use.
func (c StatusCommand) runCheck(ctx context.Context) error {
	var st Status
	if err := callHTTP(ctx, http.MethodGet, c.URL+"/v1/status", nil, &st); err != nil {
		return err
	}
	var errs []error
	if why := st.unusable(); why != "" {
		errs = append(errs, errors.New(why))
	}
	for _, p := range st.Problems {
		errs = append(errs, fmt.Errorf("problem: %s", p))
	}
	if len(errs) == 0 {
		fmt.Fprintf(c.Out, "ok: primary %s, epoch %d\n", st.Primary, st.Epoch)
	}
	return errors.Join(errs...)
}

// unusable tells why there is no primary that clients can use; empty if there is one. Where the
// leader has not decided anything yet, the node's own lease is what there is to go by.
func (s *Status) unusable() string {
	d := s.Decision
	switch {
	case s.Primary == "":
		return "there is no primary"
	case d != nil && !d.PrimaryUsable:
		return fmt.Sprintf("primary %s cannot be used: %s", s.Primary, d.Summary)
	case d != nil && d.CutOff:
		return fmt.Sprintf("primary %s is cut off: %s", s.Primary, d.Summary)
	case d == nil && !s.Lease.isUsable():
		return fmt.Sprintf("primary %s is not confirmed: no word of a leader, and no lease",
			s.Primary)
	}
	return ""
}
