package proxy

// XIDFunctions are the functions that FunctionCall names by object id.
func XIDFunctions() map[string]uint32 {
	return map[string]uint32{
		"pg_catalog.pg_current_xact_id_if_assigned()": xidOID,
		"pg_catalog.pg_current_xact_id()":             newXIDOID,
	}
}
