package proxy

import "testing"

// What may be data for an older server is known from what was sent.
func TestMayTakeData(t *testing.T) {
	copying := op{kind: opQuery, cls: clsCopy}
	for name, c := range map[string]struct {
		ops  []op
		want bool
	}{
		"nothing":       {nil, false},
		"a Query":       {[]op{{kind: opQuery}}, false},
		"a COPY":        {[]op{{kind: opQuery}, copying}, true},
		"with its end":  {[]op{{kind: opQuery, cls: clsCopy, ended: true}}, false},
		"extended":      {[]op{{kind: opExecute, cls: clsCopy}, {kind: opSync}}, true},
		"and its end":   {[]op{{kind: opExecute, cls: clsCopy}, {kind: opCopyEnd}}, false},
		"one of two":    {[]op{{kind: opExecute, cls: clsCopy}, {kind: opCopyEnd}, copying}, true},
		"more than are": {make([]op, copyLookMax+1), true},
	} {
		if f := (flow{ops: c.ops}); f.mayTakeData() != c.want {
			t.Errorf("%s: %v", name, !c.want)
		}
	}
	for version, want := range map[string]bool{
		"13.22 (Debian 13.22-0+deb11u1)": true, "13.0": true, "9.6.24": true, "14.1": false,
		"18beta1": false, "18.1": false, "": false,
	} {
		if isOldServer(version) != want {
			t.Errorf("%q: %v", version, !want)
		}
	}
}
