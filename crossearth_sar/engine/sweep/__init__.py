"""Many runs of one config whose settings are searched: what varies, which trial comes next, the table."""
