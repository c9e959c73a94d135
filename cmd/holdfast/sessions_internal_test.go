package main

import (
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestSessionsCommand(t *testing.T) {
	srv := httptest.NewServer(newHTTPHandler(&fakeController{}, prometheus.NewRegistry()))
	defer srv.Close()
	for name, tt := range map[string]struct {
		cmd  SessionsCommand
		want []string
		not  string
	}{
		"all": {SessionsCommand{}, []string{"yes", "HOLD", "1m30s  yes",
			`temporary table: "CREATE TEMP TABLE t ()"`}, "{"},
		"lost":    {SessionsCommand{Lost: true}, []string{"temporary table"}, "yes"},
		"planned": {SessionsCommand{}, []string{"planned only  temporary tables, 8 kB"}, "{"},
		"json":    {SessionsCommand{JSON: true}, []string{`"survives": true`}, "SURVIVES"},
	} {
		var out strings.Builder
		tt.cmd.URL, tt.cmd.Out = srv.URL, &out
		if err := tt.cmd.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, want := range tt.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: no %q in\n%s", name, want, out.String())
			}
		}
		if strings.Contains(out.String(), tt.not) {
			t.Errorf("%s: %q in\n%s", name, tt.not, out.String())
		}
	}
}
